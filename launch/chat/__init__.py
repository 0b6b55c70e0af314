"""Chat with a model in the terminal (`terminal`) or in the browser (`page`; `gradio_page` runs in `.venv-clients`).

Input: the address of a server, or a model folder, which is then served during the chat.
"""
