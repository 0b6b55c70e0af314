"""Data in the forms people have them: read alike, split alike, and every fault named with its row."""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from posttrain_kit import said
from tiny_qwen2 import make_tiny_qwen2

from artifacts.errors import UserError
from launch.instructions import lint as lint_data
from launch.instructions import read as chat_data
from launch.instructions import split as split_data
from launch.posttraining import data as posttrain_data
from launch.preferences import pair_accuracy

REPOSITORY = Path(__file__).resolve().parents[2]
# a folder with alpaca_zh_demo.json and dpo_zh_demo.json of LLaMA-Factory's data/, to try the linter on real data
SAMPLES = Path(os.environ.get("MYLLM_SAMPLES", "no samples"))

ASKED, ANSWERED = {"from": "human", "value": "问一"}, {"from": "gpt", "value": "答一"}
GOOD = {
    "alpaca": {"instruction": "问一", "input": "", "output": "答一"},
    "alpaca with history": {
        "instruction": "问二",
        "input": "x",
        "output": "答二",
        "history": [["a", "b"]],
        "system": "s",
    },
    "sharegpt": {"conversations": [ASKED, ANSWERED]},
    "openai": {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "问"},
            {"role": "assistant", "content": "答"},
        ]
    },
    "pairs": {"instruction": "问", "input": "", "chosen": "好", "rejected": "坏"},
    "sharegpt pairs": {
        "conversations": [ASKED],
        "chosen": {"from": "gpt", "value": "好"},
        "rejected": {"from": "gpt", "value": "坏"},
    },
    "kto": {"instruction": "问", "output": "答", "kto_tag": True},
    "sharegpt kto": {"conversations": [ASKED, ANSWERED], "label": False},
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "问"}, {"type": "text", "text": "三"}]},
            {"role": "assistant", "content": [{"type": "text", "value": "答三"}], "loss_weight": 1.0},
        ]
    },
    "smoltalk-chinese": {"id": "1", "conversations": [ASKED, ANSWERED], "model": "m", "instruction_quality_score": 5},
    "Infinity-Instruct": {
        "id": 1,
        "conversations": [ASKED, ANSWERED],
        "label": {"ability_zh": ["知识"], "cate_ability_zh": ["问答"]},
        "langdetect": "zh-cn",
        "source": "s",
        "reward": 1.5,
    },
    "COIG-CQIA": {
        "instruction": "问",
        "input": "",
        "output": "答",
        "task_type": {"major": ["问答"], "minor": ["百科"]},
        "domain": ["通用"],
        "metadata": None,
        "answer_from": "human",
        "human_verified": True,
        "copyright": "暂无版权及作者信息",
    },
    "reasoning": {"input": "问", "reasoning_content": "想", "content": "答", "repo_name": "r", "score": 9},
    "ultrafeedback": {
        "instruction": "问",
        "completions": [
            {"response": "坏", "overall_score": 2.0, "model": "a"},
            {"response": "好", "overall_score": 4.5, "model": "b"},
            {"response": "中", "overall_score": 3.0, "model": "c"},
        ],
    },
    "dialogue pairs": {
        "chosen": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "好"}],
        "rejected": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "坏"}],
    },
    "prompt pairs": {"prompt": "问", "chosen": "好", "rejected": "坏"},
    "question pairs": {
        "system": "",
        "history": [["a", "b"]],
        "question": "问",
        "response_chosen": "好",
        "response_rejected": "坏",
    },
    "tools": {
        "conversations": [
            {"role": "system", "content": "s", "tools": '[{"type": "function", "function": {"name": "天气"}}]'},
            {"role": "user", "content": "北京、上海天气？", "tools": None, "tool_calls": None},
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "要查",
                "tool_calls": '[{"name": "天气", "arguments": {"市": "北京"}}, '
                '{"function": {"name": "天气", "arguments": "{\\"市\\": \\"上海\\"}"}}]',
            },
            {"role": "tool", "content": "晴"},
            {"role": "tool", "content": "雨"},
            {"role": "assistant", "content": "北京晴，上海雨。"},
        ]
    },
}


def write(path: Path, *rows, lines: bool = False) -> Path:
    texts = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(texts) if lines else "[" + ",".join(texts) + "]", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("lines", [False, True])
def test_good_rows_of_every_form_have_no_fault(tmp_path, name, lines):
    found = lint_data.lint(write(tmp_path / "x.json", GOOD[name], lines=lines))
    assert found.rows == 1 and found.faults == []
    assert found.example is not None and found.example.prompt[-1][0] == "user"


def test_forms_are_told_apart(tmp_path):
    forms = {name: chat_data.form_of(write(tmp_path / "x.json", row)) for name, row in GOOD.items()}
    assert forms["alpaca"] == chat_data.Form("alpaca", "sft")
    assert forms["sharegpt pairs"] == chat_data.Form("sharegpt", "pairs")
    assert forms["kto"] == chat_data.Form("alpaca", "kto", "kto_tag")
    assert forms["openai"] == forms["parts"] == chat_data.Form("openai", "sft")
    assert forms["Infinity-Instruct"] == forms["tools"] == chat_data.Form("sharegpt", "sft")
    for name in ("ultrafeedback", "dialogue pairs", "prompt pairs", "question pairs"):
        assert forms[name] == chat_data.Form(name, "pairs")


def example_of(row: dict) -> chat_data.Example:
    form = chat_data.form_of_row(row)
    assert form is not None
    return chat_data.read_row(row, form)


def test_what_the_published_formats_say() -> None:
    assert example_of(GOOD["parts"]) == chat_data.Example((("user", "问三"),), ("答三",))
    assert example_of(GOOD["reasoning"]).answers == ("<think>\n想\n</think>\n\n答",)
    for name in ("ultrafeedback", "dialogue pairs", "prompt pairs"):
        assert example_of(GOOD[name]) == chat_data.Example((("user", "问"),), ("好", "坏")), name
    pairs = example_of(GOOD["question pairs"])
    assert pairs == chat_data.Example((("user", "a"), ("assistant", "b"), ("user", "问")), ("好", "坏"))
    trl = {"prompt": [{"role": "user", "content": "问"}], "chosen": [{"role": "assistant", "content": "好"}],
           "rejected": [{"role": "assistant", "content": "坏"}]}  # fmt: skip
    assert example_of(trl) == chat_data.Example((("user", "问"),), ("好", "坏"))
    one = {"conversations": [ASKED], "chosen": [ANSWERED], "rejected": [{"from": "gpt", "value": "坏"}]}
    assert example_of(one) == chat_data.Example((("user", "问一"),), ("答一", "坏"))
    rated = [{"response": answer, "annotations": {"a": {"Rating": low}, "b": {"Rating": "4"}, "c": {"Rating": "N/A"}}}
             for answer, low in (("坏", "1"), ("好", "5"))]  # fmt: skip
    assert example_of({"instruction": "问", "completions": rated}).answers == ("好", "坏")


def test_tool_calls_are_part_of_the_text() -> None:
    tools = example_of(GOOD["tools"])
    (_, system), question, (role, calls), (asked_by, results) = tools.prompt
    assert (
        system.startswith("s\n\n") and '<tools>\n{"type": "function", "function": {"name": "天气"}}\n</tools>' in system
    )
    assert question == ("user", "北京、上海天气？") and (role, asked_by) == ("assistant", "user")
    assert calls == (
        "<think>\n要查\n</think>\n\n"
        '<tool_call>\n{"name": "天气", "arguments": {"市": "北京"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "天气", "arguments": {"市": "上海"}}\n</tool_call>'
    )
    assert results == "<tool_response>\n晴\n</tool_response>\n<tool_response>\n雨\n</tool_response>"
    assert tools.answers == ("北京晴，上海雨。",)
    called = {"from": "function_call", "value": '{"name": "天气", "arguments": {}}'}
    turns = [ASKED, called, {"from": "observation", "value": "晴"}, ANSWERED]
    assert example_of({"conversations": turns, "tools": "[{}]"}).prompt[2][1].startswith("<tool_call>")


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("alpaca", {"output": None}, "`output` is not text"),
        ("alpaca", {"output": "  "}, "`output` is empty"),
        ("alpaca", {"instruction": ""}, "`instruction` is empty"),
        ("alpaca", {"history": [["only one"]]}, "`history` is not a list of"),
        ("alpaca", {"output": ...}, "`output` is missing"),
        ("sharegpt", {"conversations": [ANSWERED, ASKED]}, "turn 1 is from the assistant, but should be from the user"),
        ("sharegpt", {"conversations": [ASKED, ASKED]}, "turn 2 is from the user, but should be from the assistant"),
        ("sharegpt", {"conversations": [ASKED]}, "the last turn is not from the assistant"),
        ("sharegpt", {"conversations": []}, "is not a list of turns"),
        ("sharegpt", {"conversations": [{"from": "bot", "value": "x"}]}, "turn 1 is from 'bot'"),
        ("openai", {"messages": [{"role": "user"}]}, "`content` is missing"),
        ("pairs", {"rejected": "好"}, "`chosen` and `rejected` are equal"),
        ("pairs", {"chosen": ...}, "`chosen` is missing"),
        ("sharegpt pairs", {"chosen": ASKED}, "`chosen` is from the user"),
        ("sharegpt pairs", {"conversations": [ASKED, ANSWERED]}, "the last turn is not from the user"),
        ("kto", {"kto_tag": "yes"}, "`kto_tag` is neither true nor false"),
        ("alpaca", {"images": ["a.jpg"]}, "has pictures (`images`); only text can be trained on"),
        ("openai", {"audios": ["a.wav"]}, "has sound (`audios`)"),
        (
            "openai",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "`content` has pictures (a part of type image_url)",
        ),
        ("openai", {"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "`content` has videos"),
        ("openai", {"messages": [{"role": "user", "content": [{"type": "odd"}]}]}, "a part that is not text: type odd"),
        (
            "openai",
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "loss_weight": 0}]},
            "turn 2 has loss_weight 0",
        ),
        (
            "tools",
            {"conversations": [ASKED, {"role": "assistant", "tool_calls": '[{"name": "天气", "arguments": "北京"}]'}]},
            "the arguments of 天气 in turn 2: not JSON",
        ),
        (
            "tools",
            {"conversations": [ASKED, {"role": "assistant", "tool_calls": [{"name": "天气", "arguments": [1]}]}]},
            "the arguments of 天气 in turn 2 are not a JSON object",
        ),
        ("tools", {"conversations": [ASKED, {"role": "assistant", "tool_calls": "[{}]"}]}, "turn 2 has no name"),
        ("tools", {"tools": "{broken"}, "`tools`: not JSON"),
        (
            "ultrafeedback",
            {"completions": [{"response": "a", "overall_score": 3}, {"response": "b", "overall_score": 3}]},
            "`completions` has 2 answers and none is better than another",
        ),
        ("ultrafeedback", {"completions": [{"response": "a"}]}, "answer 1 of `completions` has neither"),
        (
            "dialogue pairs",
            {"rejected": [{"role": "user", "content": "别的"}, {"role": "assistant", "content": "坏"}]},
            "`chosen` and `rejected` differ before their last message",
        ),
    ],
)
def test_a_fault_is_named_with_its_row(tmp_path, name, change, fault):
    bad = {key: value for key, value in {**GOOD[name], **change}.items() if value is not ...}
    found = lint_data.lint(write(tmp_path / "x.json", GOOD[name], bad))
    ((row, said),) = found.faults
    assert row == 2 and fault in said


def test_half_a_character_is_a_fault(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(
        json.dumps(
            [{"instruction": "问", "output": "好\ud83d"}, *[{**GOOD["alpaca"], "input": str(i)} for i in range(20)]]
        )
    )
    assert lint_data.lint(path).faults == [(1, "`output` has half a character ('\\ud83d') at place 1")]
    split_data.split(path, tmp_path / "out", 0.3, drop_faulty=True)
    assert "\\ud83d" in (tmp_path / "out" / "x_dropped.json").read_text()


def test_broken_lines_do_not_hide_the_others(tmp_path):
    path = write(tmp_path / "x.jsonl", GOOD["alpaca"], '{"instruction": ', GOOD["alpaca with history"], lines=True)
    found = lint_data.lint(path)
    assert found.rows == 3 and [row for row, _ in found.faults] == [2]
    assert "not valid JSON" in found.faults[0][1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b'[{"instruction": "a"\n', "line 2, column 1: not valid JSON"),
        ('[{"instruction": "问'.encode("gb18030"), "is not UTF-8 at byte 18, and seems to be GBK .*iconv -f GB18030"),
        ('[{"instruction": "问"}]'.encode("utf-16"), "is UTF-16: convert it with `iconv -f UTF-16"),
        ('[{"instruction": "问'.encode() + b"\xff", "is UTF-8, but damaged at byte 21"),
        ('[{"instruction": "问'.encode()[:-1], "ends within a character"),
        (b'[{"title": "a"}]', "fields title. Known are"),
        (b"[1, 2]", "holds no row that is a JSON object"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        lint_data.lint(path)


def test_repeats_leaks_and_held_out_rows(tmp_path):
    item = "孤舟蓑笠翁独钓寒江雪千山鸟飞绝"
    evaluation = write(tmp_path / "test.jsonl", {"question": "下一句是？" + item, "A": "x"}, lines=True)
    held_out = lint_data.lint(write(tmp_path / "valid.json", GOOD["alpaca"])).keys
    leak = {"instruction": "写诗", "input": "", "output": "孤舟蓑笠翁，独钓寒江雪。千山鸟飞绝。"}
    path = write(tmp_path / "x.json", GOOD["alpaca with history"], GOOD["alpaca with history"], GOOD["alpaca"], leak)
    found = lint_data.lint(path, evaluation=lint_data.evaluation_ngrams([evaluation]), held_out=held_out)
    assert found.repeats == [(2, 1)] and found.examples == 3 and [row for row, _ in found.faults] == [3, 4]
    said = [fault for _, fault in found.faults]
    assert said[0] == "also in the held-out file, row 1" and "with an evaluation item" in said[1]
    assert "1 row repeats an earlier one and will be left out (first: row 2 repeats row 1)" in lint_data.report(
        found, None
    )
    (tmp_path / "gbk.csv").write_bytes("问题,答案".encode("gbk"))
    with pytest.raises(UserError, match="gbk.csv is not UTF-8 at byte 0, and seems to be GBK"):
        lint_data.evaluation_ngrams([tmp_path / "gbk.csv"])


def test_a_byte_order_mark_and_parquet_are_read(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = write(tmp_path / "x.jsonl", GOOD["alpaca"], "\ufeff" + json.dumps(GOOD["alpaca with history"]), lines=True)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert lint_data.lint(path).rows == 2 and not lint_data.lint(path).faults
    for name in ("tools", "Infinity-Instruct", "ultrafeedback", "dialogue pairs"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([GOOD[name]]), tmp_path / "x.parquet")
        ((_, row),) = chat_data.rows(tmp_path / "x.parquet")
        assert example_of(row) == example_of(GOOD[name])
    (tmp_path / "y.parquet").write_bytes(b"[]")
    with pytest.raises(UserError, match="y.parquet is not Parquet or is damaged"):
        lint_data.lint(tmp_path / "y.parquet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_tiny_qwen2(tmp_path_factory.mktemp("model") / "model")


def test_template_labels_and_lengths(tmp_path, folder):
    rendering = lint_data.Rendering(folder)
    path = write(tmp_path / "x.json", GOOD["alpaca"], {**GOOD["alpaca"], "output": "长" * 300})
    found = lint_data.lint(path, rendering, cutoff=100)
    ((row, length),) = found.too_long
    assert row == 2 and length > 300 and not found.faults
    text = lint_data.report(found, rendering)
    assert r"<|im_start|>user\n问一<|im_end|>\n<|im_start|>assistant\n答一<|im_end|>" in text
    assert "its loss is computed on: '答一<|im_end|>" in text


def test_a_template_that_never_stops_is_refused(folder, tmp_path):
    endless = tmp_path / "endless"
    shutil.copytree(folder, endless)
    (endless / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role + ':' + m.content }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    with pytest.raises(UserError, match="would never stop"):
        lint_data.Rendering(endless).labels(chat_data.Example((("user", "问"),), ("答",)))


def test_rendering_is_that_of_transformers(folder):
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(folder), lint_data.Rendering(folder)
    example = chat_data.Example(
        (("system", "s"), ("user", "问 <|im_end|> x"), ("assistant", "a"), ("user", "b")), ("答",)
    )
    messages = [{"role": role, "content": text} for role, text in (*example.prompt, ("assistant", "答"))]
    text = theirs.apply_chat_template(messages, tokenize=False)
    assert ours.text(example, "答") == text
    asked = theirs.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
    assert ours.render(example.prompt, ask=True) == asked
    assert ours.lengths([text]) == [len(theirs(text, add_special_tokens=False)["input_ids"])]


def test_the_split_goes_by_the_question_and_stays(tmp_path):
    rows = [{"instruction": f"问{i % 150}", "input": "", "output": f"答{i}"} for i in range(300)]
    few, many = write(tmp_path / "few.json", *rows[:200]), write(tmp_path / "many.json", *rows, lines=True)
    for path in (few, many):
        train, valid, _ = split_data.split(path, tmp_path / "out", 0.2)
        assert valid and train + valid == len(json.loads(few.read_text()) if path == few else rows)

    def questions(name: str) -> set[str]:
        return {row["instruction"] for row in json.loads((tmp_path / "out" / name).read_text())}

    assert not questions("many_train.json") & questions("many_valid.json")
    assert questions("few_valid.json") == questions("many_valid.json")


def myllm(*options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "launch.cli", *map(str, options)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


def test_the_command(tmp_path, folder):
    good = write(tmp_path / "good.json", GOOD["alpaca"])
    result = myllm("lint-data", good, "--tokenizer", folder, "--json", tmp_path / "findings.json")
    assert result.returncode == 0 and "1 rows, alpaca instructions" in result.stdout
    assert json.loads((tmp_path / "findings.json").read_text())[0]["faults"] == []
    result = myllm("lint-data", good, "--tokenizer", folder, "--cutoff-len", 3)
    assert result.returncode == 2 and "row 1: longer than cutoff_len 3 after the chat template: " in result.stderr
    bad = write(tmp_path / "bad.json", GOOD["alpaca"], {"instruction": "a"})
    result = myllm("lint-data", good, bad)
    assert result.returncode == 2
    assert result.stderr == f"error: {bad}, row 2: `output` is missing. {lint_data.MEND}\n"


@pytest.mark.skipif(not SAMPLES.exists(), reason="set MYLLM_SAMPLES to a folder with LLaMA-Factory's demo data")
@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("alpaca_zh_demo.json", chat_data.Form("alpaca", "sft")),
        ("dpo_zh_demo.json", chat_data.Form("sharegpt", "pairs")),
    ],
)
def test_real_data(name, form):
    found = lint_data.lint(SAMPLES / name)
    assert found.form == form and found.rows >= 300
    print(found.faults[:5])


@pytest.mark.slow
def test_llamafactory_reads_what_is_described(tmp_path, folder, warm):
    """LLaMA-Factory's own loader on what post-training hands it: the text of each example, as the linter renders it."""
    described, expected = {}, {}
    rendering = lint_data.Rendering(folder)
    for name, row in GOOD.items():
        example, file = example_of(row), tmp_path / f"{name.replace(' ', '_')}.jsonl"
        write(file, posttrain_data.trainer_row(example), lines=True)
        form = chat_data.form_of_row(row)
        assert form is not None
        described[file.stem] = {"file_name": file.name, **posttrain_data.described(form.kind)}
        expected[file.stem] = [1, True, rendering.text(example, example.answers[0]).strip()]
    (tmp_path / "dataset_info.json").write_text(json.dumps(described))
    script = """
import json, sys
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer
folder, model = sys.argv[1:3]
counts = {}
for name, entry in json.load(open(f"{folder}/dataset_info.json")).items():
    stage = "rm" if entry.get("ranking") else "kto" if "kto_tag" in entry["columns"] else "sft"
    arguments = dict(stage=stage, do_train=True, model_name_or_path=model, dataset=name, dataset_dir=folder,
                     template="chatml", cutoff_len=1024, output_dir=f"{folder}/out-{name}", use_cpu=True,
                     preprocessing_num_workers=None, finetuning_type="lora", report_to="none")
    model_args, data_args, training_args, _, _ = get_train_args(arguments)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    data = get_dataset(template, model_args, data_args, training_args, stage=stage, **module)["train_dataset"]
    row = data[0]
    labels = row.get("chosen_labels") or row.get("labels")
    text = module["tokenizer"].decode(row.get("chosen_input_ids") or row["input_ids"]).strip()
    counts[name] = [len(data), module["tokenizer"].convert_tokens_to_ids("<|im_end|>") in labels, text]
print(json.dumps(counts))
"""
    assert said(warm, script, str(tmp_path), str(folder)) == expected


def test_repeated_rows_are_left_out_and_faulty_ones_when_asked(tmp_path):
    made = [{"instruction": f"问题{i}", "input": "", "output": f"回答{i}"} for i in range(50)]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([*made, made[3], {"instruction": "空", "input": "", "output": ""}], ensure_ascii=False))
    with pytest.raises(UserError, match="row 52: .*--drop-faulty"):
        split_data.split(path, tmp_path / "out", 0.2)
    train, valid, dropped = split_data.split(path, tmp_path / "out", 0.2, drop_faulty=True)
    assert (train + valid, dropped) == (50, 2)
    told = json.loads((tmp_path / "out" / "mine_dropped.json").read_text())
    assert [row["row"] for row in told] == [51, 52] and told[0]["fault"] == "repeats row 4"
    for name in ("train", "valid"):
        assert not lint_data.lint(tmp_path / "out" / f"mine_{name}.json").faults


def test_a_folder_is_split_as_one_set(tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "set" / "data").mkdir(parents=True)
    made = [{**GOOD["smoltalk-chinese"], "conversations": [{"from": "human", "value": f"问{i}"}, ANSWERED]}
            for i in range(60)]  # fmt: skip
    for name, part in (("a", made[:40]), ("b", made[30:])):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(part), tmp_path / "set" / "data" / f"{name}.parquet")
    train, valid, dropped = split_data.split(tmp_path / "set", tmp_path / "out", 0.2)
    assert (train + valid, dropped) == (60, 10)
    told = json.loads((tmp_path / "out" / "set_dropped.json").read_text())
    assert told[0]["file"] == "b.parquet" and told[0]["fault"] == "repeats a.parquet, row 31"
    assert not lint_data.lint(tmp_path / "out" / "set_train.json").faults
    write(tmp_path / "set" / "c.json", GOOD["alpaca"])
    with pytest.raises(UserError, match="a.parquet holds sharegpt instructions, but .*c.json alpaca instructions"):
        split_data.split(tmp_path / "set", tmp_path / "out", 0.2)


def test_only_rows_with_a_value_are_split(tmp_path):
    path = tmp_path / "mixed.jsonl"
    rows = [{**GOOD["alpaca"], "instruction": f"问{i}", "langdetect": ("zh-cn", "en")[i % 2]} for i in range(80)]
    write(path, *rows, lines=True)
    train, valid, dropped = split_data.split(path, tmp_path / "out", 0.3, where={"langdetect": "zh-cn"})
    assert (train + valid, dropped) == (40, 0)
    with pytest.raises(UserError, match="--where langdetect: write COLUMN=VALUE"):
        split_data.conditions(["langdetect"])


def test_post_training_gets_each_example_once_and_for_ppo_no_answer(tmp_path):
    path = write(tmp_path / "x.json", GOOD["alpaca"], GOOD["alpaca with history"], GOOD["alpaca"])
    assert [number for number, _ in posttrain_data.examples(path)] == [1, 2]
    assert len(posttrain_data.questions(path)) == 2
    (_, example), _ = posttrain_data.examples(path)
    asked = {"role": "user", "content": "问一"}
    silent = posttrain_data.trainer_row(example, silent=True)
    assert silent == {"messages": [asked, {"role": "assistant", "content": ""}]}


def test_faulty_rows_of_what_must_not_leak_are_refused(tmp_path):
    """A row that cannot be read would go unseen: in an evaluation file, and in the validation file."""
    data = write(tmp_path / "data.json", GOOD["alpaca"])
    (tmp_path / "evaluation.jsonl").write_text('{"question": "好"}\n{"question": \n')
    with pytest.raises(UserError, match=r"evaluation\.jsonl, row 2: not valid JSON"):
        lint_data.evaluation_ngrams([tmp_path / "evaluation.jsonl"])
    held_out = write(tmp_path / "valid.json", {**GOOD["alpaca"], "output": ""})
    parser = argparse.ArgumentParser()
    lint_data.add_arguments(parser)
    with pytest.raises(UserError, match=r"valid\.json, row 1: `output` is empty"):
        lint_data.run(parser.parse_args([str(data), "--held-out", str(held_out)]))


@pytest.mark.parametrize("form", ["pairs", "sharegpt pairs"])
def test_pairs_of_every_format_are_measured(tmp_path, form):
    (pair,) = pair_accuracy.read_pairs(write(tmp_path / "pairs.json", GOOD[form]))
    assert pair.prompt[-1][0] == "user" and len(pair.answers) == 2
    with pytest.raises(UserError, match="has no preference pairs"):
        pair_accuracy.read_pairs(write(tmp_path / "sft.json", GOOD["alpaca"]))
