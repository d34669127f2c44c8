"""A tour through the pages, as an animation: what the browser's tests saw, one after another, each with a line of text.

make demo; YT8M_BROWSER_RECIPE=demo YT8M_BROWSER_STATE=.state YT8M_SCREENSHOTS=FOLDER make test-browser;
python -m tests.browser.tour FOLDER docs/pictures/tour.gif
"""

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FRAMES = {
    "lineage": "The graph in Dagster: data, models, predictions, ensemble",
    "materialised": "Materialise an asset, and watch its run",
    "backfill-dialog": "Backfill: shifts of the window, of all models at once",
    "backfill": "... in as few runs as the memory allows",
    "partitions": "One cell, a model at a shift: its score, its run, its files",
    "plot": "How the ensemble's weights were found",
    "mlflow-runs": "MLflow: every run, with the columns that matter",
    "mlflow-compare": "Tick the nine models and compare them",
    "mlflow-charts": "Their curves, drawn together",
    "mlflow-models": "Every kept checkpoint and the ensemble, by their scores on the hold-out",
    "leaderboard-page": "The leaderboard: models, ensemble, intervals",
}
"""Name of a picture -> what it shows."""
SECONDS = 5
SIZE = (960, 640)
_BAR = 40


def frame(picture: Path, text: str) -> Image.Image:
    """A picture's upper part at the tour's size, above a bar with the text."""
    shown = Image.open(picture).convert("RGB")
    shown = shown.resize((SIZE[0], round(shown.height * SIZE[0] / shown.width)), Image.Resampling.LANCZOS)
    whole = Image.new("RGB", SIZE, "white")
    whole.paste(shown, (0, 0))
    draw = ImageDraw.Draw(whole)
    draw.rectangle((0, SIZE[1] - _BAR, *SIZE), fill="#222222")
    draw.text((16, SIZE[1] - _BAR + 9), text, fill="white", font=ImageFont.load_default(size=19))
    return whole.quantize(128, dither=Image.Dither.NONE)


def make_tour(folder: Path, path: Path) -> None:
    """Write the animation. FileNotFoundError names a picture that is not in the folder."""
    first, *others = (frame(folder / f"{name}.png", text) for name, text in FRAMES.items())
    first.save(path, save_all=True, append_images=others, duration=1000 * SECONDS, loop=0, optimize=True)


if __name__ == "__main__":
    make_tour(Path(sys.argv[1]), Path(sys.argv[2]))
