"""Interleaved timing: networks take turns, so that a busy machine slows all of them alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

_MIN_TURNS = 3
_MAX_TURNS = 1000


@dataclass(frozen=True)
class TimedNetwork:
    """A network to be timed.

    Attributes:
        run: passes so many images through it, and waits for the result.
        size: of its weights or its file, bytes.
    """

    run: Callable[[int], object]
    size: int


def time_in_turns(
    networks: Mapping[str, TimedNetwork], *, rows: int, seconds: float
) -> dict[str, dict[str, float]]:
    """Latency of one image and throughput of many.

    Args:
        networks: by name.
        rows: images of a pass, for the throughput.
        seconds: to time each network for, at least; no fewer than 3 turns.

    Returns:
        By name: median `latency_ms`, median `images_per_second`, and `bytes`.
    """
    times: dict[str, dict[int, list[float]]] = {name: {1: [], rows: []} for name in networks}
    spent = dict.fromkeys(networks, 0.0)
    for network in networks.values():
        for number in (1, rows):
            network.run(number)  # compiles, allocates, and so on
    for turn in range(_MAX_TURNS):
        running = [name for name in networks if turn < _MIN_TURNS or spent[name] < seconds]
        for name in running:
            for number, durations in times[name].items():
                start = time.perf_counter()
                networks[name].run(number)
                durations.append(time.perf_counter() - start)
                spent[name] += durations[-1]
        if not running:
            break
    return {
        name: {
            "latency_ms": 1000 * median(durations[1]),
            "images_per_second": rows / median(durations[rows]),
            "bytes": networks[name].size,
        }
        for name, durations in times.items()
    }
