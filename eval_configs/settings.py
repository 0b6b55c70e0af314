"""Which models and how many questions, from the environment: `opencompass CONFIG` and `myllm eval` read the same files.

    MYLLM_EVAL_BASE=base=runs/poetry-tiny/models/base .venv-eval/bin/opencompass eval_configs/base_ppl.py -w out --debug

    MYLLM_EVAL_BASE       ABBR=FOLDER, several divided by `;`: models asked in plain text
    MYLLM_EVAL_CHAT       the same, models asked through their chat template
    MYLLM_EVAL_API        ABBR=NAME@URL of an OpenAI-compatible server, its key in $OPENAI_API_KEY
    MYLLM_EVAL_TOKENIZER  a folder: with it the lengths of prompts to a server are counted
    MYLLM_EVAL_POSITIONS  tokens that the server takes
    MYLLM_EVAL_QUESTIONS  a file of questions of your own (`eval_configs.questions_data`)
    MYLLM_EVAL_LIMIT      the first so many questions of every set
    MYLLM_EVAL_SETS       which sets of a suite, divided by `;` (all)
    MYLLM_EVAL_DEVICE, MYLLM_EVAL_DTYPE, MYLLM_EVAL_BATCH

OpenCompass evaluates a config without importing what it names; of the standard library only `os` works in one.
"""

import os

# New tokens of an answer. The sets ask for a letter, and the first capital letter of an answer counts.
out_length = 32
# A server is sent messages: the tokens that its chat template adds to them are not counted, so they get room.
template_room = 64

_get = os.environ.get
_none = "" if "MYLLM_EVAL_CHAT" in os.environ or "MYLLM_EVAL_API" in os.environ else "base=runs/poetry-tiny/models/base"
_base = [item.split("=", 1) for item in _get("MYLLM_EVAL_BASE", _none).split(";") if item]
_chat = [item.split("=", 1) for item in _get("MYLLM_EVAL_CHAT", "").split(";") if item]
_api = [item.split("=", 1) for item in _get("MYLLM_EVAL_API", "").split(";") if item]

# The prompt and the answer together must fit: what a config does not say, OpenCompass cuts without a word.
_positions = {
    path: int(open(path + "/config.json").read().partition('"max_position_embeddings":')[2].split(",")[0].strip(" }\n"))
    for _, path in _base + _chat
}
_local = dict(
    # Always said: the fall-back of OpenCompass is float16.
    model_kwargs=dict(device_map=_get("MYLLM_EVAL_DEVICE", "cpu"), torch_dtype=_get("MYLLM_EVAL_DTYPE", "float32")),
    generation_kwargs=dict(do_sample=False),  # or the model's generation_config.json would make scores random
    batch_size=int(_get("MYLLM_EVAL_BATCH", "16")),
    max_out_len=out_length,
    run_cfg=dict(num_gpus=0 if _get("MYLLM_EVAL_DEVICE", "cpu") == "cpu" else 1),
)
base_settings = [dict(abbr=abbr, path=path, max_seq_len=_positions[path], **_local) for abbr, path in _base]
# Examples are left out of a prompt until it takes at most `max_seq_len`: where the model writes, its answer needs room.
writing_settings = [dict(model, max_seq_len=model["max_seq_len"] - out_length) for model in base_settings]
chat_settings = [
    dict(abbr=abbr, path=path, max_seq_len=_positions[path] - out_length, **_local) for abbr, path in _chat
]
# The turns that OpenCompass gives a local chat model (huggingface_above_v4_33.py, _get_meta_template), so that a served
# model is asked the very same. Without it, examples and question would be one message.
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
# Questions of every set: for `reader_cfg`, where OpenCompass takes it, and as a number.
limit = int(_get("MYLLM_EVAL_LIMIT", "0"))
test_range = dict(test_range=f"[0:{limit}]") if limit else {}
only = [name for name in _get("MYLLM_EVAL_SETS", "").split(";") if name]
data_root = _get("COMPASS_DATA_CACHE", "")  # some stock configs read paths of the working folder: these are put here
