"""Serve a model folder as an OpenAI-compatible API, with vLLM or LMDeploy.

Input: a model folder. Output: a server on this machine, protected by a key; `gate` checks that it gives the same tokens
as Hugging Face. `serve` is the command. Before an engine starts, `preflight` checks the folder, `machine` the machine.
`engines` makes the command line; `key` requires the key on every route; `client` talks to a server.
To add an engine, add a file to `engines`.
"""
