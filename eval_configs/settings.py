"""Settings of the suites from environment variables, so that `opencompass CONFIG` and `myllm eval` run the same files.

    MYLLM_EVAL_BASE=base=runs/poetry-tiny/models/base .venv-eval/bin/opencompass eval_configs/base_ppl.py -w out --debug

    MYLLM_EVAL_BASE       models that get plain text: ABBR=FOLDER, several separated by `;`
    MYLLM_EVAL_CHAT       models that get their chat template, in the same form
    MYLLM_EVAL_API        ABBR=NAME@URL of an OpenAI-compatible server; its key is in $OPENAI_API_KEY
    MYLLM_EVAL_TOKENIZER  tokenizer folder that counts the tokens of prompts to a server
    MYLLM_EVAL_POSITIONS  context length of the server, in tokens
    MYLLM_EVAL_QUESTIONS  your own file of questions (`eval_configs.questions_data`)
    MYLLM_EVAL_LIMIT      how many questions of every set, from the first (all)
    MYLLM_EVAL_SUBJECTS   how many subjects of every exam, C-Eval and CMMLU, from the first (all)
    MYLLM_EVAL_SETS       which sets of a suite, separated by `;` (all)
    MYLLM_EVAL_DEVICE, MYLLM_EVAL_DTYPE, MYLLM_EVAL_BATCH

OpenCompass evaluates a config without running its imports. Of the standard library only `os` works in a config.
"""

import os

# Most new tokens of an answer. The sets ask for a letter, and the first capital letter of the answer counts.
out_length = 32
# Tokens reserved for a server's chat template: only the messages are counted, not what the template adds.
template_room = 64

_get = os.environ.get
_none = "" if "MYLLM_EVAL_CHAT" in os.environ or "MYLLM_EVAL_API" in os.environ else "base=runs/poetry-tiny/models/base"
_base = [item.split("=", 1) for item in _get("MYLLM_EVAL_BASE", _none).split(";") if item]
_chat = [item.split("=", 1) for item in _get("MYLLM_EVAL_CHAT", "").split(";") if item]
_api = [item.split("=", 1) for item in _get("MYLLM_EVAL_API", "").split(";") if item]

# Prompt and answer together must fit. Without this limit OpenCompass truncates silently.
_positions = {
    path: int(open(path + "/config.json").read().partition('"max_position_embeddings":')[2].split(",")[0].strip(" }\n"))
    for _, path in _base + _chat
}
_local = dict(
    # Always set, because OpenCompass's default is float16.
    model_kwargs=dict(device_map=_get("MYLLM_EVAL_DEVICE", "cpu"), torch_dtype=_get("MYLLM_EVAL_DTYPE", "float32")),
    generation_kwargs=dict(do_sample=False),  # else generation_config.json may turn on sampling
    batch_size=int(_get("MYLLM_EVAL_BATCH", "16")),
    max_out_len=out_length,
    run_cfg=dict(num_gpus=0 if _get("MYLLM_EVAL_DEVICE", "cpu") == "cpu" else 1),
)
base_settings = [dict(abbr=abbr, path=path, max_seq_len=_positions[path], **_local) for abbr, path in _base]
# OpenCompass drops examples until a prompt has at most `max_seq_len` tokens. Generation needs room for the answer too.
writing_settings = [dict(model, max_seq_len=model["max_seq_len"] - out_length) for model in base_settings]
chat_settings = [
    dict(abbr=abbr, path=path, max_seq_len=_positions[path] - out_length, **_local) for abbr, path in _chat
]
# The turns that OpenCompass gives a local chat model (huggingface_above_v4_33.py, _get_meta_template), so that a served
# model gets the same prompt. Without them, examples and question would be one message.
_turns = dict(
    round=[
        dict(role="HUMAN", api_role="HUMAN"),
        dict(role="SYSTEM", api_role="HUMAN"),
        dict(role="BOT", api_role="BOT", generate=True),
    ]
)
api_settings = [
    dict(
        abbr=abbr,
        path=name_and_url.split("@", 1)[0],
        openai_api_base=name_and_url.split("@", 1)[1],
        tokenizer_path=_get("MYLLM_EVAL_TOKENIZER", ""),
        key="ENV",
        meta_template=_turns,
        temperature=0,
        max_seq_len=int(_get("MYLLM_EVAL_POSITIONS", "2048")) - out_length - template_room,
        max_out_len=out_length,
        answer_room=out_length,
        batch_size=16,
        query_per_second=100,
        retry=3,
        run_cfg=dict(num_gpus=0),
    )
    for abbr, name_and_url in _api
]

questions = _get("MYLLM_EVAL_QUESTIONS", "")
# Number of questions of every set, and the same as OpenCompass's `reader_cfg` takes it.
limit = int(_get("MYLLM_EVAL_LIMIT", "0"))
subjects = int(_get("MYLLM_EVAL_SUBJECTS", "0")) or None
test_range = dict(test_range=f"[0:{limit}]") if limit else {}
only = [name for name in _get("MYLLM_EVAL_SETS", "").split(";") if name]
data_root = _get("COMPASS_DATA_CACHE", "")  # prefix for paths that stock configs read from the working folder
