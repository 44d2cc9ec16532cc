"""What came out: medians over the rounds, a table for the terminal, a picture in SVG, everything in JSON."""

import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from xml.sax.saxutils import escape

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench.figures import FIGURES, Figure, Measured, Size
from bench.measure import Machine

_OURS = "portguard"


@dataclass(slots=True)
class Results:
    """One run of the bench. `rounds[peer]` has one entry a round, without the figures that were void in it."""

    machine: Machine
    size: Size
    peers: Mapping[str, str]
    """Name and version of each peer that took part."""
    rounds: dict[str, list[Measured]] = field(default_factory=dict)
    troubles: list[str] = field(default_factory=list)
    """What was void or did not start, a sentence each."""

    def medians(self, figure: Figure) -> dict[str, float]:
        """Per peer, the median of `figure`; a peer that has no value in some round has no median."""
        values = {peer: [r[figure.key] for r in rounds if figure.key in r] for peer, rounds in self.rounds.items()}
        complete = {peer: one for peer, one in values.items() if one and len(one) == len(self.rounds[peer])}
        return {peer: statistics.median(one) for peer, one in complete.items()}

    def goals(self) -> list[str]:
        """Say for each goal of portguard that it was "reached: …" or "missed: …"; nothing when it did not take part."""
        said = []
        for figure in FIGURES:
            values = self.medians(figure)
            if figure.reached is not None and _OURS in self.peers:
                reached = _OURS in values and figure.reached(values)
                got = f"{_number(values[_OURS])} {figure.unit}" if _OURS in values else "nothing"
                said.append(f"{'reached' if reached else 'missed'}: {figure.title}: {figure.goal}, got {got}")
        return said

    def as_json(self) -> dict[str, object]:
        """Everything, as JSON takes it."""
        figures = {
            figure.key: {
                "title": figure.title,
                "unit": figure.unit,
                "goal": figure.goal,
                "median": self.medians(figure),
            }
            for figure in FIGURES
        }
        return {
            "machine": asdict(self.machine),
            "size": asdict(self.size),
            "peers": dict(self.peers),
            "figures": figures,
            "rounds": self.rounds,
            "troubles": self.troubles,
        }

    def table(self) -> Table:
        """A row a figure, a column a peer; behind the value, how many times portguard's it is."""
        table = Table(box=SIMPLE_HEAD, title="cost of a session: less is better", title_justify="left")
        table.add_column("figure")
        table.add_column("unit", no_wrap=True)
        for peer in self.peers:
            table.add_column(peer, justify="right", no_wrap=True)
        for figure in FIGURES:
            values = self.medians(figure)
            ours = values.get(_OURS)
            cells = [_cell(values.get(peer), None if peer == _OURS else ours) for peer in self.peers]
            table.add_row(figure.title, figure.unit, *cells, style="dim" if figure.context else "")
        return table

    def picture(self) -> str:
        """Bars, one panel a figure, as an SVG document that suits light and dark pages."""
        return "\n".join(self._drawing()) + "\n"

    def _drawing(self) -> Iterator[str]:
        shown = [(figure, self.medians(figure)) for figure in FIGURES if not figure.context]
        panel_width, bar_step = 440, 22
        panel_height = 52 + bar_step * len(self.peers)
        rows = (len(shown) + 1) // 2
        width, height = 2 * panel_width + 20, rows * panel_height + 64
        yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
        yield f'<rect width="{width}" height="{height}" rx="8" fill="#fbfbf9"/>'
        yield _text(20, 30, "Cost of a TLS tunnel with client certificates: less is better", size=17, weight="bold")
        for n, (figure, values) in enumerate(shown):
            left, top = 20 + (n % 2) * panel_width, 52 + (n // 2) * panel_height
            yield _text(left, top + 16, f"{figure.title}, {figure.unit}", size=13, weight="bold")
            longest = max([*values.values(), 1e-9])
            for m, peer in enumerate(self.peers):
                y = top + 26 + m * bar_step
                yield _text(left, y + 13, peer, size=12)
                if peer not in values:
                    yield _text(left + 80, y + 13, "void", size=12)
                    continue
                length = max(1.0, 260 * max(values[peer], 0.0) / longest)
                color = "#2f6fb3" if peer == _OURS else "#a9b1b9"
                yield f'<rect x="{left + 80}" y="{y}" width="{length:.1f}" height="17" rx="2" fill="{color}"/>'
                yield _text(left + 86 + length, y + 13, _number(values[peer]), size=12)
        facts = f"{self.machine.cpu}, {self.machine.cores} CPUs; " + ", ".join(self.peers.values())
        yield _text(20, height - 8, facts, size=10)
        yield "</svg>"


def _text(x: float, y: float, text: str, *, size: int, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="#26292c">{escape(text)}</text>'
    )


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _cell(value: float | None, ours: float | None) -> str:
    if value is None:
        return "void"
    return f"{_number(value)} ({value / ours:.2f}x)" if ours else _number(value)
