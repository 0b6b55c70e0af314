"""LMDeploy's command, whose server asks for the key on every route but /health and drains when it is asked to end.

    VLLM_API_KEY=… python -m launch.serving.lmdeploy_closed serve api_server MODEL --chat-template hf

Takes the words of `lmdeploy` and runs it, in this process and unchanged, but for one thing: the application that it
hands to uvicorn is wrapped in `launch.serving.key`. LMDeploy's own `--api-keys` puts the key on the command line,
which every user of the machine can read, and leaves /docs and /nodes open. Runs in the environment `.venv-lmdeploy`.
"""

from __future__ import annotations

from typing import Any

from launch.serving.key import RequireKey


def close() -> None:
    """Have uvicorn (which LMDeploy 0.18 calls as `uvicorn.run(app=…)`) serve the guarded application."""
    import uvicorn

    run = uvicorn.run

    def guarded(app: Any, **settings: Any) -> None:
        run(RequireKey(app), **settings)

    uvicorn.run = guarded


def main() -> None:
    close()
    from lmdeploy.cli import run

    run()


if __name__ == "__main__":
    main()
