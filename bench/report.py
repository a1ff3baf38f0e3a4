"""What compare.py has measured, as tables beside the goals that the project has set itself."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import median

import serving
from serving import FACEWISE, Load, Scenario

# Shares of the raw limit and ratios to the best peer, at the main concurrency.
SHARES = {"attributes": 0.92, "resnet-18": 0.92, "pipeline": 0.90}
RATIOS = {"attributes": 1.25, "resnet-18": 1.0, "light": 2.5, "pipeline": 1.3}
MOST_ADDED_MS, MOST_MEMORY_MB = 0.5, 100.0
MAIN = 32
FINALISTS = 3
REQUIREMENTS = serving.BENCH / "requirements.txt"
# For each scenario and peer the settings that were tried, the fastest first.
Grids = dict[str, dict[str, list[dict]]]


@dataclass
class Results:
    """What has been measured; lists have one entry a round. Keys begin with a scenario's name."""

    concurrency: list[int]
    # By server and concurrency.
    loads: dict[tuple[str, str, int], list[Load]] = field(default_factory=dict)
    # By server, in megabytes.
    memory: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    # By server: the faces of the first pictures.
    faces: dict[tuple[str, str], list[list[dict]]] = field(default_factory=dict)
    # By `decoded` (which is part of the work) or `undecoded`: pictures a second.
    limits: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    # Milliseconds of one picture alone.
    once: dict[str, list[float]] = field(default_factory=dict)
    # The raw limit's grid, the fastest first, and the networks' own memory in megabytes.
    cells: dict[str, list[dict]] = field(default_factory=dict)
    networks: dict[str, float] = field(default_factory=dict)

    @property
    def main(self) -> int:
        """The concurrency that goals are about."""
        return MAIN if MAIN in self.concurrency else self.concurrency[-1]

    def servers(self, scenario: Scenario) -> list[str]:
        """Those that were measured, facewise first."""
        return [n for n in [FACEWISE, *serving.peers(scenario)] if (scenario.name, n, self.main) in self.loads]

    def rounds(self, scenario: Scenario, server: str, concurrency: int, value: Callable[[Load], float]) -> list[float]:
        return [value(load) for load in self.loads[scenario.name, server, concurrency]]

    def ratio(self, scenario: Scenario, others: Iterable[list[float]]) -> float:
        """The median over the rounds of facewise's throughput by the best of the others' in the same round."""
        own = self.rounds(scenario, FACEWISE, self.main, throughput)
        return median(mine / max(theirs) for mine, *theirs in zip(own, *others, strict=True))


def throughput(load: Load) -> float:
    return load.throughput


def p50(load: Load) -> float:
    return load.p50


def p99(load: Load) -> float:
    return load.p99


def words(settings: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in settings.items())


def table(head: str, rows: list[list[str]]) -> str:
    cells = [head.split(" | "), ["---"] * (head.count(" | ") + 1), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def at_least(value: float, goal: float | None) -> str:
    return "–" if goal is None else f"≥ {goal:g}, {'reached' if value >= goal else '**missed**'}"


def at_most(value: float, goal: float) -> str:
    return f"≤ {goal:g}, {'reached' if value <= goal else '**missed**'}"


def speeds(scenario: Scenario, results: Results) -> list[str]:
    """facewise beside the raw limit and the best peer."""
    row = [scenario.title, f"{median(results.rounds(scenario, FACEWISE, results.main, throughput)):.1f}"]
    if decoded := results.limits.get((scenario.name, "decoded")):
        share = results.ratio(scenario, [decoded])
        row += [f"{median(values):.1f}" for values in (decoded, results.limits[scenario.name, "undecoded"])]
        row += [f"{share:.3f}", at_least(share, SHARES.get(scenario.name))]
    else:
        row += ["–"] * 4
    rivals = {name: results.rounds(scenario, name, results.main, throughput) for name in results.servers(scenario)[1:]}
    if rivals:
        best, ratio = max(rivals, key=lambda name: median(rivals[name])), results.ratio(scenario, rivals.values())
        row += [f"{best}, {median(rivals[best]):.1f}", f"{ratio:.2f}", at_least(ratio, RATIOS.get(scenario.name))]
    else:
        row += ["–"] * 3
    return row


def added(scenario: Scenario, results: Results) -> list[str]:
    """What HTTP and the server add to the time of one picture."""
    bare, served = results.once[scenario.name], results.rounds(scenario, FACEWISE, 1, p50)
    more = median(whole - part for whole, part in zip(served, bare, strict=True))
    return [scenario.title, f"{median(bare):.2f}", f"{median(served):.2f}", f"{more:.2f}", at_most(more, MOST_ADDED_MS)]


def memory(scenario: Scenario, results: Results) -> list[str]:
    used = {name: median(results.memory[scenario.name, name]) for name in results.servers(scenario)}
    own = results.networks[scenario.name]
    above = used[FACEWISE] - own
    peers = ", ".join(f"{name} {megabytes:.0f}" for name, megabytes in used.items() if name != FACEWISE)
    numbers = [f"{used[FACEWISE]:.0f}", f"{own:.0f}", f"{above:.0f}", at_most(above, MOST_MEMORY_MB)]
    return [scenario.title, *numbers, peers or "–"]


def summary(chosen: list[Scenario], results: Results) -> str:
    """The figures that have goals."""
    chosen = [scenario for scenario in chosen if FACEWISE in results.servers(scenario)]
    limited = [scenario for scenario in chosen if scenario.name in results.once]
    parts = [
        f"## Concurrency {results.main}\n\n"
        "Pictures a second; the raw limit with the decoding of pictures, as servers do it, and from pixels on.\n",
        table(
            "work | facewise | raw limit | from pixels on | share of the limit | goal | best peer | ratio to it | goal",
            [speeds(scenario, results) for scenario in chosen],
        ),
    ]
    if limited and 1 in results.concurrency:
        parts += [
            "\n## One picture after the other\n\nMilliseconds at the median: in a plain loop, and over HTTP.\n",
            table("work | alone | facewise | added | goal", [added(scenario, results) for scenario in limited]),
        ]
    if limited:
        parts += [
            "\n## Memory\n\nMegabytes at most, of all processes of a server (PSS). The networks' own: as many copies "
            "as facewise has, after runs of the\nlargest batches, in a process that does nothing else, less what it "
            "took before it loaded them.\n",
            table(
                "work | facewise | the networks' own | above | goal | peers",
                [memory(scenario, results) for scenario in limited],
            ),
        ]
    return "\n".join(parts)


def agreement(scenario: Scenario, name: str, results: Results) -> str:
    """How alike the answers are: both sides must have done the same work."""

    def left(face: dict) -> float:
        # Faces are told apart by place, since nearly equal confidences come in any order.
        return face.get("box", {}).get("x", 0.0)

    pairs = list(zip(results.faces[scenario.name, FACEWISE], results.faces[scenario.name, name], strict=True))
    alike = [(own, theirs) for own, theirs in pairs if len(own) == len(theirs)]
    both = [pair for sides in alike for pair in zip(*(sorted(faces, key=left) for faces in sides), strict=True)]
    same = sum(own["gender"]["label"] == theirs["gender"]["label"] for own, theirs in both)
    counts = f"as many faces in {len(alike)} of {len(pairs)} pictures, the same gender in {same} of {len(both)} faces"
    return f"{name} answers {counts}."


def detail(scenario: Scenario, results: Results) -> str:
    """Every server at every concurrency."""
    servers, rows, notes = results.servers(scenario), [], []
    # Concurrencies at which facewise comes before every peer.
    faster, sooner = [], []
    for concurrency in results.concurrency:
        many = {name: median(results.rounds(scenario, name, concurrency, throughput)) for name in servers}
        late = {name: median(results.rounds(scenario, name, concurrency, p99)) for name in servers}
        for name in servers:
            middle = median(results.rounds(scenario, name, concurrency, p50))
            rows.append([str(concurrency), name, f"{many[name]:.1f}", f"{middle:.2f}", f"{late[name]:.2f}"])
            for number, load in enumerate(results.loads[scenario.name, name, concurrency]):
                if load.other:
                    others = ", ".join(f"{count} × {what}" for what, count in load.other.items())
                    notes.append(f"{name} at {concurrency}, round {number + 1}: {others}, {load.answered} × 200.")
        if FACEWISE in servers:
            faster += [str(concurrency)] if many[FACEWISE] >= max(many.values()) else []
            sooner += [str(concurrency)] if late[FACEWISE] <= min(late.values()) else []
    lines = [
        f"\n## {scenario.title[0].upper()}{scenario.title[1:]}\n",
        table("concurrency | server | pictures/s | p50, ms | p99, ms", rows),
    ]
    if FACEWISE in servers and len(servers) > 1:
        everywhere = ", ".join(map(str, results.concurrency))
        ahead = f"in throughput at {', '.join(faster) or 'none'}; in p99 at {', '.join(sooner) or 'none'}"
        lines.append(f"\nfacewise comes before every peer {ahead} (of {everywhere}).")
        lines.append(f"\nOf the first pictures, {' '.join(agreement(scenario, n, results) for n in servers[1:])}")
    return "\n".join(lines + [f"\n{note}" for note in notes])


def tuning(chosen: list[Scenario], results: Results, grids: Grids) -> str:
    """What was tried to make the peers and the raw limit fast."""
    lines = [
        f"\n## How the peers were tuned\n\nPictures a second at concurrency {MAIN}; the first of each peer is what was "
        "measured."
    ]
    for scenario in chosen:
        rows = []
        for peer, tried in grids.get(scenario.name, {}).items():
            for one in tried:
                figures = [f"{one['pictures_per_second']:.1f}", f"{one['p99_ms']:.1f}"]
                rows.append([peer, f"`{words(one['settings'])}`", *figures])
        if rows:
            lines.append(f"\n{scenario.title}:\n\n" + table("peer | settings | pictures/s | p99, ms", rows))
    lines.append(
        f"\n## The raw limit's grid\n\nPictures a second with decoding. The best {FINALISTS} were tried again for longer; the "
        "first here won, and is what was measured in every round."
    )
    for scenario in chosen:
        rows = []
        for cell in results.cells.get(scenario.name, []):
            numbers = [str(cell[key]) for key in ("batch", "threads", "loops")]
            rows.append([*numbers, f"{cell['pictures_per_second']:.1f}"])
        if rows:
            lines.append(f"\n{scenario.title}:\n\n" + table("batch | threads in a run | loops | pictures/s", rows))
    return "\n".join(lines)


def document(chosen: list[Scenario], results: Results, grids: Grids, command: str, conditions: str) -> str:
    """Everything, as RESULTS.md has it; `command` is the one that measures it again."""
    pins = dict(line.split("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line)
    versions = ", ".join(f"{name} {pins[name]}" for name in ("fastapi", "uvicorn", "litserve", "onnxruntime"))
    details = "\n".join(detail(scenario, results) for scenario in chosen if results.servers(scenario))
    return (
        "# facewise beside the raw limit and other servers\n\n"
        f"Written by `{command}` on {datetime.date.today():%Y-%m-%d}: {serving.machine()}, the load (wrk) on the same "
        f"cores; {conditions}.\nFigures are medians, ratios are made within a round. The peers serve the same ONNX "
        f"files ({versions}),\neach as it was fastest. The raw limit is `bench/limit.rs`: the same stages in plain "
        f"loops. Goals are the project's own.\n\n{summary(chosen, results)}\n{details}\n{tuning(chosen, results, grids)}\n"
    )
