"""The program that a model card shows: from picture files to labels, without featpipe."""

from __future__ import annotations

from featpipe.base.preprocessing import WHITE, short_side
from featpipe.base.space import Preprocessing

_OPEN = {
    "onnx": """\
session = onnxruntime.InferenceSession(str(model_file))
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
""",
    "torch": """\
files = {"classes": ""}
model = torch.export.load(str(model_file), extra_files=files).module()
classes = json.loads(files["classes"])
""",
}
_RUN = {
    "onnx": 'session.run(["probabilities"], {"image": image[None]})[0][0]',
    "torch": "model(torch.from_numpy(image)[None])[1][0].numpy()",
}
_LIBRARY = {"onnx": "onnxruntime", "torch": "torch"}


def snippet(file: str, format: str, preprocessing: Preprocessing, *, dense: bool) -> str:
    """A program that prints path, label and probability of each picture it is given.

    Parameters
    ----------
    file : str
        Name of the exported file, which lies beside the program.
    format : {"onnx", "torch"}
    preprocessing : Preprocessing
    dense : bool
        Whether pictures need not be cut.
    """
    # A name must not end the block of Markdown that the program stands in.
    name = ascii(file).replace("`", "\\x60")
    lines = [
        "import json, pathlib, sys",
        f"import numpy, {_LIBRARY[format]}",
        "from PIL import Image, ImageOps",
        "",
        *_loading(preprocessing, dense=dense),
        "",
        f"model_file = pathlib.Path(__file__).with_name({name})",
        *_OPEN[format].splitlines(),
        "for path in sys.argv[1:]:",
        "    image = load(path)",
        f"    p = {_RUN[format]}",
        "    print(path, classes[p.argmax()], p.max())",
    ]
    return "\n".join(lines) + "\n"


def _loading(preprocessing: Preprocessing, *, dense: bool) -> list[str]:
    size, side = preprocessing.size, short_side(preprocessing)
    resample = f"Image.Resampling.{preprocessing.interpolation.upper()}"
    lines = ["def load(path):", "    image = Image.open(path)"]
    if preprocessing.decoder == "pillow-draft":
        lines.append(f"    image.draft(None, ({side}, {side}))")
    lines += [
        "    image = ImageOps.exif_transpose(image)",
        "    if image.has_transparency_data:",
        '        white = Image.new("RGBA", image.size, "white")',
        '        image = Image.alpha_composite(white, image.convert("RGBA"))',
    ]
    if preprocessing.resize == "squash":
        lines.append(f'    image = image.convert("RGB").resize(({size}, {size}), {resample})')
    else:
        lines += [
            "    width, height = image.size",
            "    short = min(width, height)",
            f"    sides = int({side} * width / short), int({side} * height / short)",
            f'    image = image.convert("RGB").resize(sides, {resample})',
        ]
        if not dense:
            lines += [
                f"    left, top = round((image.width - {size}) / 2), "
                f"round((image.height - {size}) / 2)",
                f"    image = image.crop((left, top, left + {size}, top + {size}))",
            ]
    lines.append(f'    return numpy.asarray(image, "float32").transpose(2, 0, 1) / {WHITE}')
    return lines
