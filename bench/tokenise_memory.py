"""Anonymous memory while tokenising 10 MB, 100 MB and 1 GB of text: it has to stay flat.

    .venv/bin/python bench/tokenise_memory.py TEXT.jsonl.gz TOKENIZER [MEGABYTES ...]

The text is repeated, each copy of a document with a number in front, up to the size asked for.
"""

import json
import sys
import tempfile
import threading
import time
from itertools import count
from pathlib import Path

from bequest.data import source, tokenizer, tokens
from bequest.recipe import Text


def anonymous_mb() -> float:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def write(path: Path, text: Text, megabytes: int) -> None:
    written = 0
    with path.open("w") as file:
        for copy in count():
            for doc in source.documents(text):
                written += file.write(json.dumps({"text": f"{copy} {doc.text}"}, ensure_ascii=False) + "\n")
                if written >= megabytes << 20:
                    return


def main() -> None:
    text, vocabulary = Text(path=sys.argv[1]), tokenizer.load(sys.argv[2])
    sizes = [int(a) for a in sys.argv[3:]] or [10, 100, 1000]
    vocabulary.encode([d.text for d, _ in zip(source.documents(text), range(200), strict=False)])  # caches are warm
    for megabytes in sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "text.jsonl"
            write(path, text, megabytes)
            peak, done = [anonymous_mb()], threading.Event()

            def watch(peak: list = peak, done: threading.Event = done) -> None:
                while not done.wait(0.02):
                    peak.append(anonymous_mb())

            watcher = threading.Thread(target=watch)
            watcher.start()
            began = time.perf_counter()
            store = tokens.build(
                Path(folder) / "store", "text", lambda path=path: source.documents(Text(path=str(path))), vocabulary
            )
            seconds = time.perf_counter() - began
            done.set()
            watcher.join()
            print(
                f"{megabytes:5d} MB: {len(store.tokens):,} tokens, "
                f"anonymous memory {peak[0]:.0f} MB before, {max(peak):.0f} MB at most, "
                f"{megabytes / seconds:.1f} MB/s",
                flush=True,
            )


if __name__ == "__main__":
    main()
