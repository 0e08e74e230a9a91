"""The released DWC computation from its published description, under the released names; nothing of cirbench is used.

Made for checking conversions: `clip_checkpoint` and `cnn_checkpoint` draw files with the real shapes, `clip_stream` and
`cnn_stream` compute what the release computes from such a file, in evaluation mode, in the precision of the tensors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

D = 1024


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


# ------------------------------------------------------------------------------------ drawing


def _linear(state: dict[str, Tensor], name: str, out: int, into: int) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = torch.randn(out, into) * into**-0.5, torch.randn(out) * 0.1


def _norm(state: dict[str, Tensor], name: str, width: int) -> None:
    state[f"{name}.weight"], state[f"{name}.bias"] = torch.rand(width) + 0.5, torch.randn(width) * 0.1
    state[f"{name}.running_mean"], state[f"{name}.running_var"] = torch.randn(width) * 0.1, torch.rand(width) + 0.5
    state[f"{name}.num_batches_tracked"] = torch.tensor(7)


def _inception(state: dict[str, Tensor], name: str, into: int, d: int, kernel: int) -> None:
    """`kernel` is the number of spatial axes: 2 over maps, 1 over words."""
    convs = [
        ("branch0", 3 * d // 8, into, 1), ("branch1.0", d // 2, into, 1), ("branch1.2", d // 4, d // 2, 3),
        ("branch2.0", d // 4, into, 1), ("branch2.2", d // 8, d // 4, 3), ("branch2.4", d // 4, d // 8, 3),
        ("branch3.1", d // 8, into, 1),
    ]
    for branch, out, inputs, size in convs:
        shape = (out, inputs, *([size] * kernel))
        state[f"{name}.{branch}.conv.weight"] = torch.randn(shape) * (inputs * size**kernel) ** -0.5
        _norm(state, f"{name}.{branch}.bn", out)


def clip_checkpoint(width: int, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """all_global_checkpoint.pth."""
    torch.manual_seed(seed)
    state: dict[str, Tensor] = {"loss_weight": torch.ones(1)}
    for name in ("img_fc.0", "txt_fc.0"):
        _linear(state, name, D, width)
    for name in ("atten_I", "atten_T"):
        _linear(state, f"{name}.0", D, 2 * D)
        _linear(state, f"{name}.3", D, D)
    _linear(state, "dynamic_scalar.0", D, 2 * D)
    _linear(state, "dynamic_scalar.3", 1, D)
    return {"model_state_dict": state}


def cnn_checkpoint(words: int, seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """all_local_checkpoint.pth."""
    torch.manual_seed(seed)
    state: dict[str, Tensor] = {"loss_weight": torch.ones(1)}
    for name, value in torchvision.models.resnet50(weights=None).state_dict().items():
        if not name.startswith("fc."):
            state[f"img_model.{name}"] = value + 0.1 * torch.rand(value.shape) if "bn" in name and value.ndim else value
    state |= {"img_pool.p": torch.tensor([2.5]), "pool_i.p": torch.tensor([3.2]), "pool_t.p": torch.tensor([2.8])}
    _linear(state, "img_fc", D, 2048)
    state["txt_model.embedding_layer.weight"] = torch.randn(words, 512)
    for name, shape in (("weight_ih", (4 * D, 512)), ("weight_hh", (4 * D, D)), ("bias_ih", (4 * D,)),
                        ("bias_hh", (4 * D,))):
        state[f"txt_model.lstm.{name}_l0"] = torch.randn(shape) * 0.04
    _linear(state, "txt_model.fc_output.1", D, D)
    _inception(state, "imgconv.0", 2048, 1024, 2)
    _inception(state, "imgatt.0", 2048, 2048, 2)
    _inception(state, "txtatt.0", 2048, 1024, 1)
    _inception(state, "txt2img.0", 1024, 2048, 2)
    _inception(state, "img2txt.0", 1024, 1024, 1)
    for name, out, into in (("fc_txt", D, D), ("fc_ret", D, 2048), ("fc_rei", D, D), ("combine.0", D, 2 * D),
                            ("combine.3", D, D), ("dynamic_scalar.0", D, 2 * D), ("dynamic_scalar.3", 1, D)):
        _linear(state, name, out, into)
    return {"model_state_dict": state}


# ---------------------------------------------------------------------------------- computing


def fc(s: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def two(s: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return torch.sigmoid(fc(s, f"{name}.3", torch.relu(fc(s, f"{name}.0", x))))


def basic(s: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Convolution without bias, then normalisation."""
    weight = s[f"{name}.conv.weight"]
    conv = F.conv2d if weight.ndim == 4 else F.conv1d
    x = conv(x, weight, padding=weight.shape[-1] // 2)
    n = f"{name}.bn"
    return F.batch_norm(x, s[f"{n}.running_mean"], s[f"{n}.running_var"], s[f"{n}.weight"], s[f"{n}.bias"])


def inception(s: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool1d
    one = basic(s, f"{name}.branch0", x)
    second = basic(s, f"{name}.branch1.2", torch.relu(basic(s, f"{name}.branch1.0", x)))
    third = torch.relu(basic(s, f"{name}.branch2.0", x))
    third = basic(s, f"{name}.branch2.4", torch.relu(basic(s, f"{name}.branch2.2", third)))
    fourth = basic(s, f"{name}.branch3.1", pool(x, 3, stride=1, padding=1, count_include_pad=False))
    return torch.cat([one, second, third, fourth], 1)


def gem(s: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    p = s[f"{name}.p"]
    return x.clamp(min=1e-6).pow(p).flatten(2).mean(2).pow(1 / p)


def clip_stream(s: dict[str, Tensor], image: Tensor, text: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, target, weight."""
    i, w = unit(torch.relu(fc(s, "img_fc.0", image))), unit(torch.relu(fc(s, "txt_fc.0", text)))
    both = torch.cat([i, w], 1)
    edited_i, edited_w = two(s, "atten_I", both) * i, two(s, "atten_T", both) * w
    weight = two(s, "dynamic_scalar", torch.cat([edited_i, edited_w], 1))
    t = unit(torch.relu(fc(s, "img_fc.0", target)))
    return unit(weight * edited_i + (1 - weight) * edited_w), t, weight


def cnn_stream(
    s: dict[str, Tensor], image: Tensor, ids: list[list[int]], target: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Query, target, weight; texts are padded with id 0 to the longest, and padding is treated as a word."""
    body = torchvision.models.resnet50(weights=None).to(image.dtype).eval()
    body.load_state_dict({k.removeprefix("img_model."): v for k, v in s.items() if k.startswith("img_model.")}, False)

    def layer4(x: Tensor) -> Tensor:
        x = body.maxpool(torch.relu(body.bn1(body.conv1(x))))
        return body.layer4(body.layer3(body.layer2(body.layer1(x))))

    v = layer4(image)
    longest = max(map(len, ids))
    embedded = s["txt_model.embedding_layer.weight"][torch.tensor([row + [0] * (longest - len(row)) for row in ids])]
    h = c = torch.zeros(len(ids), D, dtype=image.dtype)
    states = []
    for step in range(longest):
        z = (embedded[:, step] @ s["txt_model.lstm.weight_ih_l0"].T + s["txt_model.lstm.bias_ih_l0"]
             + h @ s["txt_model.lstm.weight_hh_l0"].T + s["txt_model.lstm.bias_hh_l0"])
        i, f, g, o = z.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        states.append(h)
    words = torch.stack(states, 1)
    small = torch.relu(inception(s, "imgconv.0", v))
    flat = small.flatten(2)
    affinity = torch.einsum("bld,bdi->bli", words, flat)
    said = torch.einsum("bli,bld->bdi", (affinity / 7.0).softmax(1), words).view_as(small)
    seen = torch.einsum("bli,bdi->bdl", (affinity / 4.0).softmax(2), flat)
    mask = torch.sigmoid(inception(s, "imgatt.0", torch.cat([small, said], 1)))
    edited_v = mask * v + torch.relu(inception(s, "txt2img.0", said))
    turned = words.transpose(1, 2)
    mask = torch.sigmoid(inception(s, "txtatt.0", torch.cat([turned, seen], 1)))
    edited_w = mask * turned + torch.relu(inception(s, "img2txt.0", seen))
    f_i, f_t = fc(s, "img_fc", gem(s, "pool_i", edited_v)), fc(s, "fc_txt", gem(s, "pool_t", edited_w))
    weight = two(s, "dynamic_scalar", torch.cat([f_i, f_t], 1))
    return unit(weight * f_i + (1 - weight) * f_t), unit(fc(s, "img_fc", gem(s, "img_pool", layer4(target)))), weight
