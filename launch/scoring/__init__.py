"""Scores by OpenCompass, each proved to be there and printed with chance, interval and protocol.

In: model folders or a server, a suite of eval_configs/. Out: `eval/<model>/scores.json`, predictions.
`evaluate` is the command (`arguments`, `models`, `opencompass`, `results` are its parts); `bits_per_byte`; `compare`
with `compare_report`; `calibrate` by a second harness. To add a set or a suite: a file in eval_configs/.
"""
