"""Chat with a model: `terminal`, and `page` in the browser (`gradio_page` runs in the clients' environment).

In: a server's address or a model folder, which is served while the chat lasts.
"""
