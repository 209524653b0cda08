"""Operations of AutoAugment and RandAugment as in torchvision: each `f(images, magnitude) -> images`.

Images are float32 `b c h w` in [0, 1]. There is one magnitude per image, in the unit that the docstring of the
operation states; operations without a magnitude ignore it. Magnitudes of geometric operations are on the CPU, where
their matrices are computed; the others are on the device of the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from mmcon.views import Params
from mmcon_views.image.color import brightness, contrast, saturation
from mmcon_views.image.pixels import map_selected_, to_device

Functions = dict[str, Callable[..., Tensor]]
Fill = float | tuple[float, float, float]
Images = Float[Tensor, "b c h w"]
Magnitude = Float[Tensor, "b 1 1 1"]
# (row, column) of a matrix -> one value an image
Cells = dict[tuple[int, int], Tensor]


def identity(x: Images, magnitude: Magnitude) -> Images:
    """The image itself."""
    return x


def invert(x: Images, magnitude: Magnitude) -> Images:
    """1 − x."""
    return 1 - x


def solarize(x: Images, threshold: Magnitude) -> Images:
    """1 − x where x is at or above the threshold (0 to 1; above 1 nothing changes)."""
    return torch.where(x >= threshold, 1 - x, x)


def solarize_add(x: Images, addition: Magnitude) -> Images:
    """X + addition, clipped, where x is below 128/255 (TensorFlow's policies)."""
    return torch.where(x < 128 / 255, (x + addition).clamp(0, 1), x)


def posterize(x: Images, bits: Magnitude) -> Images:
    """X rounded down to so many bits (0 to 8)."""
    levels = torch.ldexp(torch.ones_like(bits), bits)
    # White alone would be in one more level; torchvision assigns it to the highest one.
    return torch.minimum((x * levels).floor(), levels - 1).clamp(min=0) / levels


def autocontrast(x: Images, magnitude: Magnitude) -> Images:
    """Each channel stretched to [0, 1]; a constant channel stays."""
    low, high = x.amin(dim=(-2, -1), keepdim=True), x.amax(dim=(-2, -1), keepdim=True)
    constant = low == high
    low, width = torch.where(constant, 0.0, low), torch.where(constant, 1.0, high - low)
    return ((x - low) / width).clamp_(0, 1)


def equalize(x: Images, magnitude: Magnitude) -> Images:
    """Histogram equalization of each channel at 256 levels, with Pillow's lookup table."""
    b, c, h, w = x.shape
    # torchvision's conversion to bytes: each level gets an equal share of [0, 1].
    level = (x * 255.999).to(torch.int64).view(b, c, h * w)
    counts = torch.zeros(b, c, 256, dtype=torch.int64, device=x.device)
    counts.scatter_add_(2, level, torch.ones_like(level))
    below = counts.cumsum(2)
    brightest = counts.gather(2, below.argmax(2, keepdim=True))
    step = (h * w - brightest).div(255, rounding_mode="floor")
    table = (below[..., :-1] + step // 2).div(step.clamp(min=1), rounding_mode="floor").clamp(0, 255)
    table = F.pad(table, (1, 0)).to(torch.float32) / 255
    equalized = table.gather(2, level)
    return torch.where(step == 0, level.to(torch.float32) / 255, equalized).view(b, c, h, w)


def sharpness(x: Images, factor: Magnitude) -> Images:
    """Away from a 3 × 3 smoothing (center 5, others 1, over 13): factor · x + (1 − factor) · smooth; borders stay."""
    if min(x.shape[-2:]) <= 2:
        return x
    rows = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    smooth = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * x[..., 1:-1, 1:-1]) / 13
    out = x.clone()
    out[..., 1:-1, 1:-1] = x[..., 1:-1, 1:-1] * factor + smooth * (1 - factor)
    return out.clamp_(0, 1)


def affine(x: Images, matrix: Float[Tensor, "b 2 3"], *, fill: float = 0.0, interpolation: str = "nearest") -> Images:
    """Resample each image once: output pixel (x, y), relative to the center, is input pixel matrix · (x, y, 1).

    Args:
        x: images.
        matrix: from output to input coordinates.
        fill: the gray outside of the input.
        interpolation: "nearest", "bilinear" or "bicubic".
    """
    grid = affine_grid(matrix, x.shape[-2], x.shape[-1], x.device)
    # `grid_sample` fills with zeros; the shift by the fill makes zero the fill.
    out = F.grid_sample(x - fill, grid, mode=interpolation, padding_mode="zeros", align_corners=False)
    return (out + fill).clamp_(0, 1)


def affine_grid(
    matrix: Float[Tensor, "b 2 3"], height: int, width: int, device: torch.device
) -> Float[Tensor, "b h w 2"]:
    """The input coordinates of each output pixel for `grid_sample`: the image is from −1 to 1."""
    # torchvision's arithmetic, step by step in float32, so that ties between two pixels are rounded as there.
    rows, half = to_device(device, matrix.to(torch.float32), torch.tensor([width / 2, height / 2]))
    scaled = rows.transpose(1, 2) / half
    points = torch.ones(height, width, 3, device=device)
    points[..., 0] = torch.arange(width, device=device) - (width - 1) / 2
    points[..., 1] = (torch.arange(height, device=device) - (height - 1) / 2)[:, None]
    points = points.view(1, height * width, 3).expand(len(matrix), -1, -1)
    return torch.bmm(points, scaled).view(-1, height, width, 2)


def affine_matrix(magnitude: Float[Tensor, " b"], cells: Cells) -> Float[Tensor, "b 2 3"]:
    """The identity with some cells replaced, in float64 on the CPU."""
    matrix = torch.eye(2, 3, dtype=torch.float64).repeat(len(magnitude), 1, 1)
    for (row, column), value in cells.items():
        matrix[:, row, column] = value.to("cpu", torch.float64)
    return matrix


def _slopes(magnitude: Magnitude) -> Float[Tensor, " b"]:
    """Slopes by way of an angle in degrees, as in torchvision: the last bit decides ties."""
    angles = [math.degrees(math.atan(slope)) for slope in magnitude.flatten().tolist()]
    return torch.tensor([math.tan(math.radians(angle)) for angle in angles], dtype=torch.float64)


def shear_x(x: Images, slope: Magnitude, fill: float = 0.0) -> Images:
    """Each row shifted in proportion to its distance from the top edge; the magnitude is the slope."""
    m = _slopes(slope)
    return affine(x, affine_matrix(m, {(0, 1): m, (0, 2): m * (x.shape[-2] / 2)}), fill=fill)


def shear_y(x: Images, slope: Magnitude, fill: float = 0.0) -> Images:
    """Each column shifted in proportion to its distance from the left edge; the magnitude is the slope."""
    m = _slopes(slope)
    return affine(x, affine_matrix(m, {(1, 0): m, (1, 2): m * (x.shape[-1] / 2)}), fill=fill)


def translate_x(x: Images, pixels: Magnitude, fill: float = 0.0) -> Images:
    """Shifted to the right by whole pixels."""
    m = pixels.view(-1)
    return affine(x, affine_matrix(m, {(0, 2): -torch.trunc(m)}), fill=fill)


def translate_y(x: Images, pixels: Magnitude, fill: float = 0.0) -> Images:
    """Shifted down by whole pixels."""
    m = pixels.view(-1)
    return affine(x, affine_matrix(m, {(1, 2): -torch.trunc(m)}), fill=fill)


def rotate(x: Images, degrees: Magnitude, fill: float = 0.0) -> Images:
    """Rotated about the center, counterclockwise."""
    return affine(x, affine_matrix(degrees.view(-1), rotation_cells(degrees.view(-1))), fill=fill)


def rotation_cells(degrees: Float[Tensor, " b"]) -> Cells:
    """The cells of a rotation matrix."""
    angles = [math.radians(angle % 360) for angle in degrees.tolist()]
    cos, sin = (torch.tensor([f(angle) for angle in angles], dtype=torch.float64) for f in (math.cos, math.sin))
    return {(0, 0): cos, (0, 1): -sin, (1, 0): sin, (1, 1): cos}


def cutout(x: Images, box: Float[Tensor, "b 3 1 1"], fill: float = 0.0) -> Images:
    """A square of `fill`; the box holds half its side (pixels), and its center as fractions of height and width."""
    h, w = x.shape[-2:]
    half, row, column = to_device(x.device, box)[0].split(1, dim=1)
    down = torch.arange(h, device=x.device).view(1, 1, h, 1) - torch.floor(row * h)
    across = torch.arange(w, device=x.device).view(1, 1, 1, w) - torch.floor(column * w)
    inside = (down >= -half) & (down < half) & (across >= -half) & (across < half)
    return torch.where(inside, fill, x)


# By their names in the papers; the parameter "operation" is an index into this dict.
OPERATIONS: dict[str, Callable[..., Tensor]] = {
    "Identity": identity,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
    "Rotate": rotate,
    "Brightness": brightness,
    "Color": saturation,
    "Contrast": contrast,
    "Sharpness": sharpness,
    "Posterize": posterize,
    "Solarize": solarize,
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Invert": invert,
    "SolarizeAdd": solarize_add,
    "Cutout": cutout,
}
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Cutout")
NAMES = tuple(OPERATIONS)


def apply_operations(
    x: Float[Tensor, "b c h w"], params: Params, fill: Fill, functions: Functions = OPERATIONS
) -> None:
    """Apply the drawn operations in place, slot by slot; images with the same operation are processed together.

    Args:
        x: images, which change.
        params: "operation" (`b slots` int64, indices into `OPERATIONS`, −1 for none), "magnitude" (`b slots` float64,
            in the operation's unit), "center" for cutout (`b slots 2` float64), and "bicubic" where the interpolation
            is drawn (`b slots` bool).
        fill: the gray or the color outside of the image after a geometric operation.
        functions: the operations by name: torchvision's, or a variant of `policy_variants`.
    """
    operation, magnitude = params["operation"], params["magnitude"]
    for slot in range(operation.shape[1]):
        for chosen in operation[:, slot].unique().tolist():
            name = NAMES[chosen]
            if chosen < 0 or name == "Identity":
                continue
            amounts = magnitude[:, slot, None]
            if name == "Cutout":
                amounts = torch.cat([amounts, params["center"][:, slot]], dim=1)
            elif "bicubic" in params and name in GEOMETRIC:
                amounts = torch.cat([amounts, params["bicubic"][:, slot, None].to(amounts.dtype)], dim=1)
            function = functions[name]

            def some(
                images: Images, amount: Float[Tensor, "b k"], name: str = name, function: Any = function
            ) -> Images:
                columns = amount.to(torch.float32)[:, :, None, None]
                if name in GEOMETRIC:
                    return function(images, columns, fill=fill)
                return function(images, *to_device(images.device, columns))

            map_selected_(x, operation[:, slot] == chosen, some, amounts)
