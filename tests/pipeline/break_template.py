"""For test_rehearsal: copy a model with a mistake in it.

python -m tests.pipeline.break_template --model runs/x/models/base --output broken           # its template never stops
python -m tests.pipeline.break_template --model runs/x/models/base --output broken --rows 9  # fewer rows than tokens
"""

import argparse
import shutil
from pathlib import Path

from artifacts.files import read_json, write_json

parser = argparse.ArgumentParser()
parser.add_argument("--model", type=Path)
parser.add_argument("--output", type=Path)
parser.add_argument("--rows", type=int)
given = parser.parse_args()
shutil.copytree(given.model, given.output, dirs_exist_ok=True)
if given.rows:
    config = read_json(given.output / "config.json")
    write_json(given.output / "config.json", {**config, "vocab_size": given.rows})
else:
    template = given.output / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8").replace("<|im_end|>", ""), encoding="utf-8")
