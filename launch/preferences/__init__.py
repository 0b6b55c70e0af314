"""What a model prefers, and how good its answers are, measured on held-out data.

In: model folders, preference pairs or requests. Out: JSON with accuracy or rewards and their intervals.
`pair_accuracy` (chosen against rejected), `answer_rewards` (rewards of sampled answers), `judged_pairs` (pairs for a
reward model, out of a model's own answers).
"""
