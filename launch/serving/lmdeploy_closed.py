"""Run LMDeploy's command with a server that requires the key on every route but /health and supports /drain.

    VLLM_API_KEY=… python -m launch.serving.lmdeploy_closed serve api_server MODEL --chat-template hf

It takes the arguments of `lmdeploy` and runs it unchanged in this process, with one difference: the application that it
passes to uvicorn is wrapped in `launch.serving.key`. LMDeploy's own `--api-keys` puts the key on the command line,
which every user of the machine can read, and leaves /docs and /nodes open. Runs in the environment `.venv-lmdeploy`.
"""

from __future__ import annotations

from typing import Any

from launch.serving.key import RequireKey


def close() -> None:
    """Make uvicorn serve the guarded application; LMDeploy 0.18 calls `uvicorn.run(app=…)`."""
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
