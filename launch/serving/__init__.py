"""Serving a model folder as an OpenAI-compatible API, with vLLM or LMDeploy.

In: a model folder. Out: a server on this machine, behind a key; `gate` proves that it answers as Hugging Face does.
`serve` is the command; `preflight` looks at the folder and `machine` at the machine before an engine starts;
`engines` makes the command line; `key` asks for the key on every route; `client` talks to a server.
To add an engine: its command line and environment in `engines`.
"""
