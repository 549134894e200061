"""The command line: arguments only. Everything else is imported when its command is run."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

Command = Callable[[str, str, str, str], argparse.ArgumentParser]
"""Adds a command: (name, its module in prism_sweeps.commands, what it does, examples)."""

OVERVIEW = """\
examples:
  prism plan nano/axes                          what would run, what is shared, what it costs
  prism sweep nano/axes                         run it; run it again to go on after an interruption
  prism sweep backbone=nano-clip,nano-dinov2 resize=letterbox,naive seed=1,2
  prism status nano/axes                        where every cell stands; --watch follows it
  prism logs nano/axes                          what the failed jobs wrote
  prism retry nano/axes                         these once more
  prism report nano/axes                        tables, plots and a page
  prism compare 1a2b3c4d 5e6f7a8b               two scored models on the same examples: how sure the difference is
  prism ask photo.png "What is on the left?" --cell 1a2b3c4d
  prism export 1a2b3c4d --format llava --to FOLDER

exit codes: 0 all well, 1 jobs failed, 2 something to mend (the message says what), 130 interrupted by you,
75 told to make room (SIGTERM, SIGUSR2): checkpoints are written, start it again
"""
STUDY = """\
  STUDY          a study of conf/study (`prism studies` lists them), or one that this store has run
  key=value      Hydra overrides: an axis and its choices (resize=letterbox,naive), or a value (stages.chain...);
                 without STUDY they are a grid of their own
"""
STATES = """\
states:
  new running done failed interrupted    as their names say; interrupted goes on where it was
  queued        SLURM has it, and says why it waits
  silent        runs, but without a sign of life for 3 minutes, or getting further for 30; or SLURM holds it back
  lost          ended without a word: its node failed, its time or memory was over
  cancelled     by somebody
  skipped       needs one that failed, was lost or cancelled
  unknown       was submitted, and SLURM does not answer
  partial       a cell some of whose jobs are done
"""
DATA = """\
NAME is one of
  gqa, pope, ...         a benchmark of conf/benchmark: its index is made from the official files. Those are fetched
                         into DATA/downloads (an interrupted download goes on), or taken from --from FOLDER, in its
                         usual sub-folders or anywhere in it, packed or not. What is missing is listed, with addresses
  nano-benchmarks, nano-world-6000, easy-vqa    data sets that are drawn, or come with a package
  small                  the small real weights

Images stay where they are; the index has links to them, and each is looked for before anything is asked. Counts and
hashes are held to the declaration; about.json beside the index says what it was made from. Image archives are large:
COCO's 6 GB (vqav2, pope) and 13 GB (refcoco), GQA's 20 GB, Visual Genome's 15 GB (tallyqa), TextVQA's 7 GB.

examples:
  prism data prepare nano-benchmarks nano-world-6000
  prism data prepare gqa pope                             fetch and prepare
  prism data prepare gqa --from /datasets/gqa             from files that are there; nothing is fetched
  prism data prepare vqav2 --from /datasets/coco --download       images from there, the rest fetched
  prism data prepare --study nano/axes
  prism data prepare mine --config-dir conf               a benchmark of one's own: conf/benchmark/mine.yaml
  prism data prepare small
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = parse(argv)
    from prism_sweeps.config.errors import PrismError

    try:
        code: int = importlib.import_module(f"prism_sweeps.commands.{arguments.module}").run(arguments)
    except PrismError as error:
        print(f"prism: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("prism: interrupted; what was done is kept", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments; overrides and names may stand before, between and after options."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    words = getattr(arguments, "overrides", getattr(arguments, "names", None))
    unknown = [text for text in rest if text.startswith("-") or words is None]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if words is not None:
        words += rest
    return arguments


def build_parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="prism", description="Sweeps over the design axes of vision-language models.", epilog=OVERVIEW,
        formatter_class=raw,
    )  # fmt: skip
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, module: str, text: str, example: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text, epilog=example, formatter_class=raw)
        found.set_defaults(module=module)
        found.add_argument(
            "--store", type=Path, metavar="FOLDER", help="records (default: PRISM_STORE, or the config's)"
        )
        found.add_argument(
            "--config-dir",
            type=config_folder,
            metavar="FOLDER",
            help="your own choices and studies, added to ours; or those of a package: pkg://my_package.conf",
        )
        return found

    add_grid_commands(command)
    add_cell_commands(command)
    add_folder_commands(command)
    add_record_commands(command)
    add_comparing_commands(command)
    add_study_commands(command)
    return parser


def add_grid_commands(command: Command) -> None:
    """plan and sweep."""
    plan = command(
        "plan", "plan", "Show what a study would run: cells, shared jobs, what is done, cost.",
        f"{STUDY}\nexamples:\n  prism plan nano/axes\n  prism plan backbone=nano-clip,nano-siglip seed=1,2 --json\n"
        "  prism plan paper/prisms cluster.gpu=h100-80gb cluster.gpus_per_node=8 --budget 5000\n\n"
        "Times are by what this store has measured, else by what cluster.gpu can do.",
    )  # fmt: skip
    sweep = command(
        "sweep", "sweep", "Run what is not done yet of a study, on this machine or as SLURM jobs.",
        f"{STUDY}\nHere, Ctrl-C writes checkpoints and stops; the same command goes on from there. With cluster=slurm\n"
        "jobs are submitted and the command returns, or follows them with --wait (exit code 0 when all are done, else\n"
        "1); Ctrl-C then leaves them running. Cells that were added are submitted alone; jobs of cells that were\n"
        "removed are named, with the command that cancels them.\n\n"
        "examples:\n  prism sweep nano/axes\n  prism sweep nano/axes engine.workers=1\n"
        "  prism sweep resize=letterbox,naive,crop --name resize-only\n"
        "  prism sweep nano/axes cluster=slurm cluster.partition=gpu cluster.time=2:00:00 --wait",
    )  # fmt: skip
    sweep.add_argument("--wait", action="store_true", help="SLURM: follow until all have ended (here it always waits)")
    for parser in (plan, sweep):
        parser.add_argument("overrides", nargs="*", metavar="STUDY key=value", help="see below")
        parser.add_argument("--name", help="name of the study (default: STUDY, or adhoc-<hash> for a grid)")
        parser.add_argument(
            "--budget", type=float, metavar="GPU_HOURS", help="refuse a plan that costs more, or of unknown cost"
        )
        parser.add_argument("--json", action="store_true", help="print JSON")


def add_cell_commands(command: Command) -> None:
    """train, evaluate, ask."""
    train = command(
        "train", "train", "Train and score one cell here, in the foreground.",
        "examples:\n  prism train llm=nano-base\n  prism train backbone=nano-dinov2 seed=3 suite.examples=50\n\n"
        "On several processes, each with a GPU of its own, or two on a CPU to try it:\n"
        "  torchrun --nproc-per-node 8 --no-python prism train backbone=clip-vit-l llm=vicuna-v15-7b engine=gpu ...\n"
        "  srun --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 --kill-on-bad-exit=1 prism train ...\n"
        "Batches, and so results, are those of one process. engine.sharding is full, grad-only or hybrid.",
    )  # fmt: skip
    evaluate = command(
        "evaluate", "evaluate",
        "Score one trained cell, or finished models of others, here, in the foreground; nothing is trained.",
        "examples:\n  prism evaluate llm=nano-base suite.conditions=[real,blank,shuffled]\n\n"
        "model=hf:NAME_OR_FOLDER is a model of others: any that AutoModelForImageTextToText of transformers loads\n"
        "(LLaVA, InstructBLIP, BLIP-2, Qwen-VL, SmolVLM, PaliGemma, ...). It is asked by its own chat template, and\n"
        "one without by what its authors write. Several, with commas between, become one study, to be compared.\n"
        "Beside it suite, engine, store and tracking can be said. Weights come from safetensors alone, and code\n"
        "that comes with a model is never run. A folder counts by its files, a name by the hub's commit: the one in\n"
        "this machine's cache, else the newest.\n"
        "  prism evaluate model=hf:llava-hf/llava-1.5-7b-hf suite=paper engine=gpu engine.eval_batch=32\n"
        "  prism evaluate model=hf:my-llava,hf:Salesforce/instructblip-vicuna-7b suite=nano suite.examples=100\n"
        "  prism report baseline/my-llava+instructblip-vicuna-7b     one against the other\n"
        "model=vllm:NAME_OR_FOLDER asks the same through vLLM (pip install 'prism-sweeps[vllm]'), which was tested\n"
        "with a double of it only. Our own cells get there by prism export CELL --format llava --to FOLDER; lmms-eval\n"
        "runs what prism export wrote: lmms-eval --model prism --model_args pretrained=FOLDER --tasks ...\n"
        "(pip install 'prism-sweeps[lmms-eval]').\n\n"
        "--power scores nothing: it says how small a difference a suite, or benchmarks by name, can show. What it has\n"
        "to know of models it takes from those that the store has scored, else it says what it assumes.\n"
        "  prism evaluate --power suite=paper,paper-slim            the whole of each, and a sample\n"
        "  prism evaluate --power pope vsr --difference 2           how many examples two points need\n"
        "  prism evaluate --power suite=paper --alpha 0.0038        0.05 / 13: Holm's first step for 13 benchmarks\n"
        "Two models of which one alone is right on a fifth of 1,024 examples (--discordance 0.2) are told apart four\n"
        "times out of five if they are 3.9 points apart; for one point that takes 15,696 examples.",
    )  # fmt: skip
    evaluate.add_argument(
        "--power", action="store_const", const="power", dest="module", help="what differences the benchmarks can show"
    )
    for name, help_text in (
        ("--alpha", "two-sided error of the first kind (default: 0.05)"),
        ("--power-target", "how often the difference is to be found (default: 0.8)"),
        ("--difference", "in points: how many examples it needs (default: 1)"),
        ("--accuracy", "in percent, at which SE is told (default: what the store tells, else 70)"),
        ("--discordance", "share of examples one of two models alone has right (default: the store's, else 0.2)"),
    ):
        evaluate.add_argument(name, type=float, metavar="NUMBER", help=f"with --power: {help_text}")
    for parser in (train, evaluate):
        parser.add_argument("overrides", nargs="*", metavar="key=value", help="Hydra overrides that make one cell")
        parser.add_argument("--name", help="name under which the cell is kept (default: adhoc-<hash>)")
        parser.add_argument("--json", action="store_true", help="print JSON")
    ask = command(
        "ask", "ask", "Ask a trained cell a question about an image.",
        'examples:\n  prism ask photo.png "What is on the left?" --cell 1a2b3c4d\n'
        '  prism ask photo.png "How many?" --cell backbone=nano-clip seed=2',
    )  # fmt: skip
    ask.add_argument("image", type=Path, metavar="IMAGE")
    ask.add_argument("question", metavar="QUESTION")
    ask.add_argument("--cell", nargs="+", required=True, metavar="ID|key=value", help="id (prism status) or overrides")
    ask.add_argument("--study", help="where to look for the id (default: every study of the store)")
    ask.add_argument("--max-new-tokens", type=int, default=128, metavar="N", help="longest answer (default: 128)")
    ask.add_argument("--json", action="store_true", help="print JSON")


def add_folder_commands(command: Command) -> None:
    """export and import."""
    export = command(
        "export", "export", "Write a trained cell into a folder of its own.",
        "formats:\n"
        "  prism   any cell: weights, tokenizer and a card; prism_sweeps.load(FOLDER).ask(IMAGE, QUESTION) needs no\n"
        "          store and no hub\n"
        "  llava   LlavaForConditionalGeneration and LlavaProcessor of transformers load it: one CLIP or SigLIP\n"
        "          tower, projector mlp. What LLaVA cannot express is refused, with the reason\n\n"
        "FOLDER appears whole or not at all, and one that holds something is left alone.\n\n"
        "examples:\n  prism export 1a2b3c4d --to my-model\n"
        "  prism export backbone=nano-clip seed=2 --format llava --to my-llava\n"
        "  prism export my-model --format llava --to my-llava     of a folder that export or import wrote",
    )  # fmt: skip
    export.add_argument(
        "cell", nargs="+", metavar="CELL", help="id (prism status), overrides (key=value ...), or a prism folder"
    )
    export.add_argument("--study", help="where to look for the id (default: every study of the store)")
    export.add_argument("--format", default="prism", metavar="FORMAT", help="prism (default) or llava")
    bring = command(
        "import", "bring", "Read a released Prismatic VLM into the prism format.",
        "FOLDER is a run of TRI-ML/prismatic-vlms: config.json and checkpoints/latest-checkpoint.pt. What the\n"
        "checkpoint does not hold (frozen towers, the tokenizer) comes from the hub, once; the new folder needs none.\n"
        "Towers that it does hold are read; the reference's own loader leaves the stock ones in their place.\n\n"
        "examples:\n  hf download TRI-ML/prismatic-vlms --include 'prism-clip+7b/*' --local-dir released\n"
        "  prism import released/prism-clip+7b --to prism-clip-7b\n"
        "  prism export prism-clip-7b --format llava --to prism-clip-7b-llava",
    )  # fmt: skip
    bring.add_argument("folder", type=Path, metavar="FOLDER")
    for parser, help_text in ((export, "the new folder"), (bring, "the new folder (default: FOLDER-prism)")):
        parser.add_argument("--to", type=Path, required=parser is export, metavar="FOLDER", help=help_text)
        parser.add_argument("--json", action="store_true", help="print JSON")


def add_record_commands(command: Command) -> None:
    """report, studies, data."""
    report = command(
        "report", "report", "Write a study's tables, plots and page, and bring MLflow up to date.",
        "examples:\n  prism report nano/axes",
    )  # fmt: skip
    report.add_argument("study", metavar="STUDY")
    report.add_argument("--json", action="store_true", help="print JSON")
    studies = command("studies", "studies", "List the studies that can be run.", "examples:\n  prism studies")
    studies.add_argument("--json", action="store_true", help="print JSON")
    data = command(
        "data", "data", "Prepare data sets, benchmarks and the small real weights before anything needs them.",
        DATA,
    )  # fmt: skip
    data.add_argument("action", choices=["prepare"])
    data.add_argument("names", nargs="*", metavar="NAME", help="benchmarks; data sets; small: the small real weights")
    data.add_argument("--study", help="those that this study needs")
    data.add_argument("--from", dest="folder", type=Path, metavar="FOLDER", help="where official files are")
    data.add_argument("--download", action="store_true", help="with --from: fetch what is not there")
    data.add_argument("--workers", type=int, default=0, metavar="N", help="processes (default: one per core)")


def add_comparing_commands(command: Command) -> None:
    """compare."""
    compare = command(
        "compare", "compare", "Compare two scored models on the same examples, benchmark by benchmark.",
        "A and B are each a cell's id (prism status), overrides in quotes, or a finished model that was evaluated\n"
        "(hf:NAME). Of every benchmark and condition that both were scored on: the difference A - B with its standard\n"
        "error and 95 % interval by image, and how likely so large a difference is where there is none. Examples that\n"
        "only one side has are left out and counted; a benchmark whose data are of another version on the other side\n"
        "is refused.\n\n"
        "examples:\n  prism compare 1a2b3c4d 5e6f7a8b\n"
        '  prism compare "resize=naive seed=1" "resize=letterbox seed=1" --json\n'
        "  prism compare 1a2b3c4d hf:llava-hf/llava-1.5-7b-hf\n\n"
        "A line such as\n"
        "  vqav2  real  1,024  71.20  68.90  +2.30  ± 0.90  +0.55 to +4.06  0.0105  0.0420\n"
        "reads: on these 1,024 questions A is better by 2.3 points; on all such questions by 0.5 to 4. Two models\n"
        "that are equally good differ as much on one set in a hundred (0.0105); that some benchmark of a suite does,\n"
        "by luck alone, is likelier (0.0420, Holm).",
    )  # fmt: skip
    for name in ("a", "b"):
        compare.add_argument(name, metavar=name.upper(), help="ID, 'key=value ...' or hf:NAME")
    compare.add_argument("--study", help="where to look for ids (default: every study of the store)")
    compare.add_argument("--json", action="store_true", help="print JSON")


def add_study_commands(command: Command) -> None:
    """status, logs, cancel, retry, clean."""
    status = command(
        "status", "status", "Show where every cell of a study stands, and why jobs failed; without STUDY, all studies.",
        f"{STATES}\nexamples:\n  prism status\n  prism status nano/axes\n  prism status nano/axes --watch 5\n"
        "  prism status nano/axes --json | jq .counts\n\n"
        "--watch ends when nothing changes by itself any more, with exit code 1 if something failed.",
    )  # fmt: skip
    status.add_argument("study", nargs="?", metavar="STUDY")
    status.add_argument("--all", action="store_true", help="every cell, also of a long table")
    status.add_argument(
        "--watch", nargs="?", type=seconds, const=10.0, metavar="SECONDS", help="look again every 10 (or so many) s"
    )
    logs = command(
        "logs", "logs", "Show what jobs, and SLURM, have written, and where.",
        "WHAT is a cell's id, a job's fingerprint (the first 4 letters will do), a SLURM id, or a study: then its\n"
        "failed jobs. -f also prints what is added, over all attempts, until the jobs have ended.\n\n"
        "examples:\n  prism logs nano/axes\n  prism logs 1a2b3c4d -n 100\n  prism logs 4711_3 -f",
    )  # fmt: skip
    logs.add_argument("what", metavar="WHAT")
    logs.add_argument("--study", help="where to look for the id (default: every study of the store)")
    logs.add_argument("-n", dest="lines", type=int, default=40, metavar="LINES", help="of each log (default: 40)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is added")
    cancel = command(
        "cancel", "cancel", "Take a study's jobs out of SLURM's queue, and end those that run.",
        "Running jobs write a checkpoint first; `prism retry` goes on from there. What another study of the store\n"
        "needs too stays, and with --cell what another cell needs. Jobs that share an allocation end with it.\n\n"
        "examples:\n  prism cancel nano/axes\n  prism cancel nano/axes --cell 1a2b3c4d --yes\n"
        "  prism cancel nano/axes --job 4711_3\n  prism cancel nano/axes --removed",
    )  # fmt: skip
    cancel.add_argument("--removed", action="store_true", help="jobs of cells that the study no longer has")
    cancel.add_argument("--even-shared", action="store_true", help="also what other studies or cells need")
    retry = command(
        "retry", "retry", "Try again what has failed, was lost or cancelled, or gives no sign of life.",
        "With all retries, from the last checkpoint, and with what was skipped because of it. Silent jobs are\n"
        "cancelled first. Cells that were never started stay so (prism sweep starts them).\n\n"
        "examples:\n  prism retry nano/axes\n  prism retry nano/axes --cell 1a2b3c4d --job 5e6f",
    )  # fmt: skip
    for parser in (cancel, retry):
        parser.add_argument("study", metavar="STUDY")
        parser.add_argument("--cell", nargs="+", default=[], metavar="ID", help="only these cells")
        parser.add_argument("--job", nargs="+", default=[], metavar="ID", help="only these jobs (or SLURM ids)")
    clean = command(
        "clean", "clean", "Show and remove what a study, and its store, no longer needs.",
        "Always: checkpoints of done jobs, half-written files, SLURM's files of jobs that ended well, snapshots of\n"
        "the code that nothing in the queue runs. Scores, logs and curves stay.\n\n"
        "examples:\n  prism clean nano/axes\n  prism clean nano/axes --weights --yes\n"
        "  prism clean nano/axes --unused --features --json      only lists; with --yes it removes",
    )  # fmt: skip
    clean.add_argument("study", metavar="STUDY")
    clean.add_argument("--weights", action="store_true", help="weights with all that starts from them done")
    clean.add_argument("--unused", action="store_true", help="records of jobs that no study of the store needs")
    clean.add_argument("--features", action="store_true", help="kept features of frozen towers, of all studies")
    for parser in (cancel, clean):
        parser.add_argument("--yes", action="store_true", help="do not ask")
    for parser in (status, cancel, retry, clean):
        parser.add_argument("--json", action="store_true", help="print JSON")


def config_folder(text: str) -> Path:
    """A folder, or that of an installed package, as Hydra writes it. Raises ArgumentTypeError."""
    if not text.startswith("pkg://"):
        return Path(text)
    name = text.removeprefix("pkg://").replace("/", ".").strip(".")
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        raise argparse.ArgumentTypeError(f"'{text}': there is no package {name}; is it installed here?")
    return Path(found.submodule_search_locations[0])


def seconds(text: str) -> float:
    """A pause of --watch. Raises ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"'{text}' is no number of seconds from 0.1 on; STUDY stands before --watch")
    return value


if __name__ == "__main__":
    sys.exit(main())
