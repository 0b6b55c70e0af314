"""Score models with OpenCompass; each score is checked, and printed with chance, interval and protocol.

Input: model folders or a server, and a suite of eval_configs/. Output: `eval/scores.json` and predictions.
`evaluate` is the command; `arguments`, `models`, `opencompass` and `results` are its parts. `bits_per_byte` measures
perplexity, `compare` (with `compare_report`) compares models, `calibrate` scores again with a second harness. To add a
set or a suite, add a file to eval_configs/.
"""
