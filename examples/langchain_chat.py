"""LangChain with the served model: a chat with memory, and answers from a folder of texts (BM25, offline).

    myllm serve runs/poetry-tiny/models/dpo &                        # another terminal
    .venv-clients/bin/python examples/langchain_chat.py --server http://127.0.0.1:8000 写一首诗。 再写一首。
    .venv-clients/bin/python examples/langchain_chat.py --folder examples/poetry/notes 王维写过什么？

The key comes from $MYLLM_API_KEY or the key file of `myllm serve`. The questions are turns of one conversation. The
retriever compares pairs of characters, so Chinese needs no word segmentation; a local embedding model could replace it.
Needs `make env-clients`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from server import Address, parser, reach, run_main

from artifacts.errors import UserError

CHARACTERS = 160  # limit for retrieved text in a prompt and for memory: the context of a tiny model is short


def chat_model(address: Address, tokens: int) -> Any:
    """LangChain's OpenAI client, connected to the local server."""
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(
        model=address.name,
        base_url=f"{address.url}/v1",
        api_key=address.key,
        temperature=0.7,
        max_tokens=tokens,
        max_retries=2,
    )


def remembering(address: Address, tokens: int) -> Any:
    """A chain with LangGraph's memory: the model gets the conversation so far, cut to the last `CHARACTERS`."""
    from langchain_core.messages import trim_messages
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.graph import START, MessagesState, StateGraph

    def characters(messages: list[Any]) -> int:
        """Count characters: LangChain's own token counter would download another model's vocabulary."""
        return sum(len(str(message.content)) for message in messages)

    cut = trim_messages(max_tokens=CHARACTERS, token_counter=characters, strategy="last", start_on="human")
    model = chat_model(address, tokens)

    def speak(state: Any) -> dict[str, Any]:
        return {"messages": model.invoke(cut.invoke(state["messages"]) or state["messages"][-1:])}

    graph = StateGraph(MessagesState)
    graph.add_node("speak", speak)
    graph.add_edge(START, "speak")
    return graph.compile(checkpointer=InMemorySaver())


def pairs(text: str) -> list[str]:
    """Pairs of neighbouring characters, as search terms."""
    signs = [sign for sign in text if sign.isalnum()]
    return ["".join(two) for two in zip(signs, signs[1:], strict=False)] or signs


def retriever(folder: Path, best: int = 2) -> Any:
    """BM25 over the paragraphs of a folder's .txt and .md files. Raises UserError if there are none."""
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from rank_bm25 import BM25Okapi

    paragraphs = [
        Document(page_content=part.strip(), metadata={"source": file.name})
        for file in sorted(folder.glob("*.txt")) + sorted(folder.glob("*.md"))
        for part in file.read_text(encoding="utf-8").split("\n\n")
        if part.strip()
    ]
    if not paragraphs:
        raise UserError(f"--folder {folder} has no text in .txt or .md files: give a folder that has some")
    index = BM25Okapi([pairs(document.page_content) for document in paragraphs])

    class Paragraphs(BaseRetriever):
        def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
            scores = index.get_scores(pairs(query))
            order = sorted(range(len(paragraphs)), key=lambda number: -scores[number])
            return [paragraphs[number] for number in order[:best] if scores[number] > 0]

    return Paragraphs()


def answer_from(address: Address, folder: Path, tokens: int) -> Any:
    """A retrieval chain: the prompt is the best paragraphs, cut to `CHARACTERS`, and the question."""
    from langchain_core.output_parsers import StrOutputParser
    from langchain_core.prompts import ChatPromptTemplate
    from langchain_core.runnables import RunnablePassthrough

    prompt = ChatPromptTemplate.from_messages([("human", "根据以下内容回答。\n{found}\n问题：{question}")])

    def joined(documents: list[Any]) -> str:
        for document in documents:
            print(f"[{document.metadata['source']}] {document.page_content.splitlines()[0]}")
        return "\n".join(document.page_content for document in documents)[:CHARACTERS]

    chain = prompt | chat_model(address, tokens) | StrOutputParser()
    return {"found": retriever(folder) | joined, "question": RunnablePassthrough()} | chain


def talk(arguments: argparse.Namespace) -> None:
    address = reach(arguments)
    if arguments.folder:
        chain = answer_from(address, arguments.folder, arguments.max_tokens)
        for question in arguments.questions:
            print(f"> {question}\n{chain.invoke(question)}")
        return
    chain, session = remembering(address, arguments.max_tokens), {"configurable": {"thread_id": "one"}}
    for question in arguments.questions:
        print(f"> {question}")
        for piece, _ in chain.stream({"messages": [("human", question)]}, session, stream_mode="messages"):
            print(piece.content, end="", flush=True)
        print()
    print(f"[{len(chain.get_state(session).values['messages'])} messages remembered]")


def main() -> None:
    made = parser(__doc__)
    made.add_argument("questions", nargs="+", help="questions, in order")
    made.add_argument("--folder", type=Path, help="answer from the texts of this folder")
    made.add_argument("--max-tokens", type=int, default=64, help="most tokens of a reply (default: %(default)s)")
    talk(made.parse_args())


if __name__ == "__main__":
    run_main(main)
