"""Measure on held-out data what a model prefers and how good its answers are.

Input: model folders, preference pairs or prompts. Output: JSON with accuracy or rewards and their intervals.
`pair_accuracy` compares chosen with rejected answers, `answer_rewards` measures the rewards of sampled answers,
`judged_pairs` makes pairs for a reward model from a model's own answers.
"""
