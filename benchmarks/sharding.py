"""Text to tokens on two processes: `python -m hybrid.data prepare` beside `datasets.map`, taking turns.

    python benchmarks/sharding.py --datasets-python VENV/bin/python     where VENV has: pip install datasets tokenizers

Both read one JSONL file of Python sources and use the same tokenizers file, with the library's own threads off. Ours
does all that it does: hashes, order, near-duplicates, shards, checksums. The peer is timed for loading and mapping, and
for mapping alone; its function is the library's fastest call, encode_batch_fast. Times begin in a process that has
imported what it needs. Beside wall time stands CPU time, processes included, which says more where others work too.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROCESSES = 2
PAGE = 3000
VOCAB_SIZE = 8000
TRAINED_ON = 1200

PEER = """
import json, os, resource, sys, time
os.environ["TOKENIZERS_PARALLELISM"] = "false"
import datasets
from tokenizers import Tokenizer
datasets.disable_progress_bars()
source, tokenizer_path, cache, processes = sys.argv[1:]
tokenizer = Tokenizer.from_file(tokenizer_path)
tokenizer.encode_special_tokens = True

def tokens(batch):
    found = tokenizer.encode_batch_fast(batch["text"], add_special_tokens=False)
    return {"ids": [encoding.ids for encoding in found]}

def cpu_s():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

began, cpu = time.perf_counter(), cpu_s()
data = datasets.load_dataset("json", data_files=source, split="train", cache_dir=cache)
loaded, loaded_cpu = time.perf_counter(), cpu_s()
mapped = data.map(tokens, batched=True, num_proc=int(processes), remove_columns=data.column_names)
done, done_cpu = time.perf_counter(), cpu_s()
n = sum(map(len, mapped.with_format("numpy")["ids"][:]))
print(json.dumps({"all": [done - began, done_cpu - cpu], "map": [done - loaded, done_cpu - loaded_cpu], "tokens": n}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets-python", required=True, help="a Python that can import datasets")
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        return ours(*map(Path, options.ours))
    with tempfile.TemporaryDirectory() as place:
        source, tokenizer = make_input(Path(place), options.megabytes)
        print(f"{source.stat().st_size / 1e6:.0f} MB of JSONL, {PROCESSES} processes, load {os.getloadavg()[0]:.1f}")
        found: dict[str, list[tuple[float, float]]] = {"ours": [], "load and map": [], "map": []}
        for number in range(options.rounds):
            for who in ("peer", "ours") if number % 2 else ("ours", "peer"):
                out = Path(place) / f"{who}-{number}"
                arguments = [str(source), str(tokenizer), str(out)]
                command = [sys.executable, __file__, "--datasets-python", "-", "--ours", *arguments]
                if who == "peer":
                    command = [options.datasets_python, "-c", PEER, *arguments, str(PROCESSES)]
                text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
                result = json.loads(text)
                names = {"all": "load and map", "map": "map"} if who == "peer" else {"all": "ours"}
                for key, name in names.items():
                    found[name].append(tuple(result[key]))
                print(f"round {number + 1}, {who}: {result}", flush=True)
                shutil.rmtree(out)
    print(f"{'':14}{'wall s':>9}{'CPU s':>9}{'wall, ours = 1':>17}{'CPU, ours = 1':>16}")
    for name, times in found.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        of_wall, of_cpu = (
            statistics.median(a[i] / b[i] for a, b in zip(times, found["ours"], strict=True)) for i in (0, 1)
        )
        print(f"{name:14}{wall:9.2f}{cpu:9.2f}{of_wall:17.2f}{of_cpu:16.2f}")
    return 0


def make_input(place: Path, megabytes: int) -> tuple[Path, Path]:
    """Pages of the standard library's sources, again and again behind a number, and a BPE of some of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from hybrid.corpus import read_stdlib

    texts = [document.content.decode("utf-8", "replace") for document in read_stdlib()]
    pages = [text[at : at + PAGE] for text in texts for at in range(0, len(text), PAGE)]
    source, size, number = place / "pages.jsonl", 0, 0
    with open(source, "w") as file:
        while size < megabytes * 1_000_000:
            size += file.write(json.dumps({"text": f"{number} {pages[number % len(pages)]}", "id": number}) + "\n")
            number += 1
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pages[:: max(1, len(pages) // TRAINED_ON)], trainer)
    tokenizer.save(str(place / "tokenizer.json"))
    return source, place / "tokenizer.json"


def ours(source: Path, tokenizer: Path, out: Path) -> int:
    from multiprocessing.forkserver import _forkserver

    from hybrid.data.prepare import PrepareSettings, prepare
    from hybrid.data.prepare.parts import PartSettings
    from hybrid.data.prepare.tokenizer import choose_tokenizer

    def cpu_s() -> float:
        return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

    began, cpu = time.perf_counter(), cpu_s()
    settings = PrepareSettings(
        sources=(str(source),),
        validation=(),
        part=PartSettings(
            tokenizer=choose_tokenizer(str(tokenizer), name=None, bos=None, eos=None),
            text_column="text",
            seed=1,
            fraction=1.0,
            bad="stop",
        ),
        tokens=None,
        val_tokens=None,
        val_percent=1.0,
        ngram=13,
        max_overlap=1.0,  # the pages come again and again
        shard_tokens=1 << 23,
        declared=None,
    )
    made = prepare(settings, out, processes=PROCESSES, report=lambda *_: None)
    wall_s = time.perf_counter() - began
    _forkserver._stop()  # its processes are counted once it is waited for
    times = [wall_s, cpu_s() - cpu]
    n = made.data["read"]["tokens"] - 2 * made.data["read"]["documents"]
    print(json.dumps({"all": times, "tokens": n}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
