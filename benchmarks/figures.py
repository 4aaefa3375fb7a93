"""Figures of a benchmark: each yields rows, each row a ratio with quartiles and target."""

import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version

import torch
from omegaconf import DictConfig

import network_pairs
import report
from bench import Bench, funmatch
from funmatch.config.errors import UserError
from interleaved_timing import ContenderError, Result
from report import Row

DIGITS = ["data=digits"]


def overhead(bench: Bench) -> Iterator[Row]:
    """The framework against a bare loop: speed and memory."""
    for pair, (overrides, target) in bench.pairs.items():
        every = network_pairs.endless(overrides, "bench")
        result = bench.compare(
            {
                "bare": ("benchmarks/baseline_loop.py", every),
                "funmatch": funmatch(every),
            }
        )
        yield _speed("overhead", pair, result, "funmatch", "bare", target)
        memory = result.peaks["funmatch"] / result.peaks["bare"]
        detail = " / ".join(f"{result.peaks[n] / 1e6:,.0f} MB" for n in ("funmatch", "bare"))
        what = "peak memory, funmatch / bare"
        yield Row("overhead", pair, what, memory, target=1.1, most=True, detail=detail)


def others(bench: Bench) -> Iterator[Row]:
    """Funmatch against other frameworks, on the recipe that all support: same views, not mixed."""
    for pair, (overrides, _) in bench.pairs.items():
        every = network_pairs.endless([*overrides, "recipe=consistent"], "bench")
        contenders = {"funmatch": funmatch(every)}
        for name, package in (("torchdistill", "torchdistill"), ("timm", "timm")):
            script = f"benchmarks/{name}_kd.py"
            if _version(package) is None:
                what = f"funmatch / {name}"
                yield Row("others", pair, what, None, detail=f"{package} is not installed")
                continue
            contenders[name] = (script, every)
        if len(contenders) > 1:
            result = bench.compare(contenders)
            target = 2.0 if torch.cuda.is_available() else 1.0
            for name in list(contenders)[1:]:
                yield _speed("others", pair, result, "funmatch", name, target)


def device(bench: Bench) -> Iterator[Row]:
    """Throughput of one GPU against the limit of its tensor cores."""
    # images/s at 790 TFLOP/s, GFLOP of an image, batch.
    for side, (limit, flop, batch) in {224: (6814, 115.9, 128), 128: (20861, 37.87, 192)}.items():
        pair = f"R152x2 to R50 at {side} px"
        if not torch.cuda.is_available():
            detail = "needs a GPU: python src/benchmark.py figures=[device]"
            yield Row("device", pair, "of the limit", None, target=0.5, detail=detail)
            continue
        overrides = network_pairs.paper(bench.root, bench.folder, side, batch)
        result = bench.compare({"funmatch": funmatch(network_pairs.endless(overrides, "device"))})
        speed = batch / statistics.median(result.seconds["funmatch"])
        detail = f"{speed:,.0f} images/s, {speed * flop / 1000:,.0f} TFLOP/s"
        yield Row("device", pair, "of the limit", speed / limit, target=0.5, detail=detail)


def shares(bench: Bench) -> Iterator[Row]:
    """Shares of a run's time."""
    for pair, (overrides, _) in bench.pairs.items():
        bench.remove("shares")
        bench.run("src/train.py", [*overrides, *_finite(30 * bench.cfg.rounds), "name=shares"])
        (row,) = bench.summary("shares")
        batch = next((o for o in overrides if o.startswith("batch_size=")), "batch_size=100")
        loop = row["steps"] * int(batch.partition("=")[2]) / row["images_per_second"]
        teacher, student = row["teacher_seconds"] / loop, row["student_seconds"] / loop
        rest = f"student {student:.0%}, data and framework {1 - teacher - student:.0%}"
        detail = f"{rest} of {1e3 * loop / row['steps']:,.1f} ms"
        yield Row("shares", pair, "the teacher's share of a step", teacher, detail=detail)


def stall(bench: Bench) -> Iterator[Row]:
    """What data cost beyond input that costs nothing, and what a run writes beside."""
    for pair, (overrides, _) in bench.pairs.items():
        result = bench.compare(
            {
                "no input": funmatch(
                    network_pairs.endless(overrides, "synthetic"), "benchmarks/synthetic.py"
                ),
                "funmatch": funmatch(network_pairs.endless(overrides, "bench")),
            }
        )
        yield _lost(pair, result, "time for data", "funmatch", "no input", 0.03)
    every = network_pairs.endless(DIGITS, "kept")
    kept = [e for e in every if "validate_every" not in e and "checkpoint_every" not in e]
    result = bench.compare(
        {"alone": funmatch(network_pairs.endless(DIGITS, "bench")), "with all": funmatch(kept)},
        rounds=max(2, bench.cfg.rounds // 3),
        seconds=5 * bench.cfg.seconds,
    )
    what = "time for validations and checkpoints"
    yield _lost("digits", result, what, "with all", "alone", 0.01)


def targets(bench: Bench) -> Iterator[Row]:
    """Precomputed targets against training the same student on labels."""
    for pair, (overrides, _) in bench.pairs.items():
        # Labels are not mixed here, so targets are not mixed either.
        overrides = [*overrides, "recipe=consistent"]
        labels = [o.replace("student", "model") for o in overrides[:-1]]
        labels = [o for o in labels if not o.startswith("teacher")]
        if "data=digits" in overrides:
            labels += ["model=digits_student"]
        turn, rounds = 200 if pair == "digits" else 8, min(bench.cfg.rounds, 8)
        finite = [
            o for o in network_pairs.endless(overrides, "record") if not o.startswith("steps=")
        ]
        finite.append(f"steps={turn * (rounds + 2)}")
        bench.run("src/train.py", [*finite, "targets=record"])
        result = bench.compare(
            {
                "labels": funmatch(network_pairs.endless(labels, "labels"), "src/finetune.py"),
                "fixed teacher": funmatch(
                    network_pairs.endless([*overrides[:-1], "recipe=fixed_teacher"], "fixed")
                ),
                "replayed": funmatch([*finite, "targets=replay", "name=replay"]),
            },
            rounds=rounds,
            steps=turn,
        )
        for name in ("fixed teacher", "replayed"):
            yield _speed("targets", pair, result, name, "labels", 0.95)


def sweep(bench: Bench) -> Iterator[Row]:
    """The second run of a sweep, whose targets are recorded, against one that asks the teacher."""
    run = [*network_pairs.heavy(bench.root, bench.folder), *_finite(150)]
    bench.remove("live", "first", "second")
    live = bench.run("src/train.py", [*run, "name=live"])
    first = bench.run("src/train.py", [*run, "name=first", "targets=record"])
    again = ["name=second", "targets=auto", "optimizer.lr=0.003"]
    second = bench.run("src/train.py", [*run, *again])
    (row,) = bench.summary("live")
    share = row["teacher_seconds"] / (row["teacher_seconds"] + row["student_seconds"])
    seconds = f"live {live:.0f} s, recording {first:.0f} s, second {second:.0f} s"
    detail = f"{seconds}; the teacher is {share:.0%} of a step"
    yield Row("sweep", _HEAVY, "live / second run", live / second, target=2.5, detail=detail)


def students(bench: Bench) -> Iterator[Row]:
    """Five students of one teacher, computed for each, against recorded by the first."""
    rates = "optimizer.lr=0.01,0.006,0.003,0.001,0.0003"
    run = [*network_pairs.heavy(bench.root, bench.folder), *_finite(60), rates]
    bench.remove("online", "recorded")
    online = bench.run("src/train.py", ["-m", *run, "name=online"])
    recorded = bench.run("src/train.py", ["-m", *run, "name=recorded", "targets=auto"])
    detail = f"{online:.0f} s and {recorded:.0f} s"
    ratio = online / recorded
    yield Row("students", _HEAVY, "5 online / 5 recorded", ratio, target=2.0, detail=detail)


_HEAVY = "bit, student at 64 px"


def _finite(steps: int) -> list[str]:
    return [f"steps={steps}", "schedule.warmup_steps=5", "logger=none", "resume=never"]


def epochs(bench: Bench) -> Iterator[Row]:
    """What the end of an epoch costs: one in each step, against one in each 10.77 steps."""
    every = network_pairs.endless([*DIGITS, "recipe=consistent"], "bench")
    result = bench.compare(
        {
            "one": funmatch([*every, "data.images_per_class=10"]),
            "many": funmatch([*every, "data.images_per_class=null"]),
        }
    )
    differences = sorted(
        (one - many) * 1e3 / (1 - 1 / 10.77)
        for one, many in zip(result.seconds["one"], result.seconds["many"], strict=True)
    )
    middle = differences[len(differences) // 2]
    quartiles = differences[len(differences) // 4], differences[-len(differences) // 4]
    yield Row("epochs", "digits", "ms of an epoch", middle, *quartiles, 0.5, True, _steps(result))


def growth(bench: Bench) -> Iterator[Row]:
    """A long run: time of the last tenth against the first, memory, and what a resume costs."""
    tiny = ["batch_size=10", "objective.temperature=2"]
    total = bench.cfg.steps
    with bench.contender(*funmatch(network_pairs.endless(tiny, "growth"))) as contender:
        contender.ready()
        contender.train(1000)
        reports = [contender.train(total // 10) for _ in range(10)]
    ratio = reports[-1]["seconds"] / reports[0]["seconds"]
    detail = f"{total:,} steps, {1e3 * reports[0]['seconds'] / (total // 10):.2f} ms each"
    yield Row(
        "growth", "digits, tiny", "last tenth / first", ratio, target=1.02, most=True, detail=detail
    )
    grown = (reports[-1]["peak"] - reports[0]["peak"]) / 1e6
    yield Row("growth", "digits, tiny", "MB more at the end", grown, target=5, most=True)
    far = total // 5
    short = [
        o
        for o in network_pairs.endless(tiny, "")
        if not o.startswith(("name=", "resume=", "check"))
    ]
    ready: dict[int, list[float]] = {1000: [], far: []}
    for step in ready:
        run = [*short, f"name=resume_{step}", f"checkpoint_every={step}"]
        bench.remove(f"resume_{step}")
        with bench.contender(*funmatch(run)) as contender:
            contender.ready()
            contender.train(step + 1)
    for _ in range(5):
        for step, seconds in ready.items():
            run = [*short, f"name=resume_{step}", f"checkpoint_every={step}"]
            start = time.perf_counter()
            with bench.contender(*funmatch(run)) as contender:
                contender.ready()
                seconds.append(time.perf_counter() - start)
    near_, far_ = (statistics.median(seconds) for seconds in ready.values())
    what, detail = f"resume at step {far:,} / at 1,000", f"{far_:.1f} s and {near_:.1f} s"
    yield Row("growth", "digits, tiny", what, far_ / near_, target=1.05, most=True, detail=detail)


FIGURES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    figure.__name__: figure
    for figure in (
        overhead,
        others,
        device,
        shares,
        stall,
        targets,
        sweep,
        students,
        epochs,
        growth,
    )
}


def measure(cfg: DictConfig) -> None:
    """Measures the selected figures, and writes benchmark.json, benchmark.md and benchmark.png."""
    for name in cfg.figures:
        if name not in FIGURES:
            raise UserError(f"figures=[{name}]: no such figure; choose {', '.join(FIGURES)}")
    bench = Bench(cfg)
    rows: list[Row] = []
    for name in cfg.figures:
        try:
            for row in FIGURES[name](bench):
                rows.append(row)
                report.say(row)
        except ContenderError as error:
            raise UserError(str(error)) from error
        report.write(bench.folder, rows)
    report.show(rows)
    print(f"{bench.folder}/benchmark.json, benchmark.md, benchmark.png")


def _speed(figure: str, pair: str, result: Result, one: str, other: str, target: float) -> Row:
    value, low, high = result.ratio(one, other)
    return Row(figure, pair, f"{one} / {other}", value, low, high, target, detail=_steps(result))


def _lost(pair: str, result: Result, what: str, one: str, other: str, target: float) -> Row:
    """The share of the time of one program that the other does not need."""
    value, low, high = result.ratio(one, other)
    return Row("stall", pair, what, 1 - value, 1 - high, 1 - low, target, True, _steps(result))


def _steps(result: Result) -> str:
    each = {name: sorted(times)[len(times) // 2] * 1e3 for name, times in result.seconds.items()}
    return ", ".join(f"{name} {milliseconds:,.1f} ms" for name, milliseconds in each.items())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
