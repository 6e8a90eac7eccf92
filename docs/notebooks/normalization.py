# Source of normalization.ipynb and normalization.zh.ipynb: `make notebooks` executes it and writes
# both. They share the code; each text stands here in English, then in Chinese.

# %% [markdown] lang="en"
# # Normalization: from five lines to a mended network
#
# This notebook writes batch normalization by hand, shows which numbers share a mean in four
# normalizers, trains the LeNet of the textbook *Dive into Deep Learning*, finds out why its test
# accuracy jumps, and mends it. Exercises for a class and their answers are at the end.
#
# It runs from top to bottom in less than five minutes on two cores, without a GPU and without a
# network connection. It needs [normkit](../install.md) with its extra `notebooks` (`pip install
# --no-build-isolation ".[notebooks]"` in a clone) and a reader who knows tensors, modules and
# training loops of PyTorch.
#
# *For teachers*: delete the section "Answers" before you hand the notebook out. Both languages
# have the same cells.

# %% [markdown] lang="zh"
# # 归一化：从五行代码到修好的网络
#
# 本笔记本先手写批量归一化（batch normalization），再说明四种归一化方法分别让哪些数共用一个均值；然后训练《动手学深度学习》中的 LeNet，找出其测试准确率跳动的原因，并加以修复。最后是课堂练习和答案。
#
# 在两个 CPU 核上从头运行到尾不超过五分钟，不需要 GPU，也不需要联网。运行前请安装 [normkit](../install.zh.md) 及其 `notebooks` 附加依赖（在克隆的仓库中执行 `pip install --no-build-isolation ".[notebooks]"`）。读者应当了解 PyTorch 的张量、模块和训练循环。
#
# *教师须知*：分发给学生之前，请删除“答案”一节。中英文两个版本的单元格完全一致。

# %%
import copy
import math
import warnings
from itertools import pairwise

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots
from torch import nn
from torch.nn import functional as F

import normkit as nk
from normkit.lab import data

torch.manual_seed(0)
torch.set_num_threads(1)  # networks as small as these gain little from a second thread

ORANGE, BLUE, GREY = "#b3541e", "#1f5fa8", "#8a9099"


def chart(title, x_title, y_title, lines):
    """Draw lines, each a name, its x and y values, a colour and a stroke."""
    figure = go.Figure()
    for name, x, y, colour, stroke in lines:
        line = {"color": colour, "dash": stroke}
        figure.add_scatter(x=list(x), y=list(y), name=name, line=line)
    figure.update_layout(title=title, xaxis_title=x_title, yaxis_title=y_title)
    figure.update_layout(template="plotly_white", width=760, height=380, margin={"t": 60, "b": 50})
    figure.show()


# %% [markdown] lang="en"
# ## 1. Batch normalization in five lines
#
# For images of shape (N, C, H, W) batch normalization takes, for each channel, the mean $\mu$ and
# the variance $\sigma^2$ of all values of that channel in the batch, and computes
#
# $$y = \gamma\,\frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \beta .$$
#
# $\gamma$ and $\beta$ are learned, one of each per channel. The variance is the biased one: the
# sum of squares is divided by the number of values, $N \cdot H \cdot W$.

# %% [markdown] lang="zh"
# ## 1. 五行代码的批量归一化
#
# 设图像的形状为 (N, C, H, W)。批量归一化对每个通道计算该通道在整个小批量中所有数值的均值 $\mu$ 和方差 $\sigma^2$，然后计算
#
# $$y = \gamma\,\frac{x - \mu}{\sqrt{\sigma^2 + \varepsilon}} + \beta .$$
#
# $\gamma$ 和 $\beta$ 是学习得到的参数，每个通道各有一个。这里的方差是有偏方差：平方和除以数值的个数 $N \cdot H \cdot W$。


# %%
def batch_norm(x, gamma, beta, eps=1e-5):
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    var = x.var(dim=(0, 2, 3), correction=0, keepdim=True)
    x_hat = (x - mean) / torch.sqrt(var + eps)
    return gamma * x_hat + beta


# %% [markdown] lang="en"
# The outputs and the gradients agree with those of `torch.nn.BatchNorm2d` in training mode up to
# rounding, and so do those of normkit's layer, which replaces it. In float64 the differences
# shrink with the rounding error: the formulas are the same.

# %% [markdown] lang="zh"
# 输出和梯度与训练模式下的 `torch.nn.BatchNorm2d` 一致，差别只是舍入误差；可以直接替换它的 normkit 层也是如此。改用 float64 后，差别随舍入误差一起变小，可见公式相同。

# %%
for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-13)):
    for layer in (nn.BatchNorm2d(4, dtype=dtype), nk.BatchNorm2d(4, dtype=dtype)):
        nn.init.uniform_(layer.weight)
        nn.init.uniform_(layer.bias)
        x = (3 + 2 * torch.randn(8, 4, 5, 5, dtype=dtype)).requires_grad_()
        by_hand = batch_norm(x, layer.weight.view(1, 4, 1, 1), layer.bias.view(1, 4, 1, 1))
        by_layer = layer(x)
        downstream = torch.randn_like(x)
        outputs = (by_hand - by_layer).abs().max().item()
        grad_by_hand, grad_by_layer = (
            torch.autograd.grad(y, x, downstream)[0] for y in (by_hand, by_layer)
        )
        gradients = (grad_by_hand - grad_by_layer).abs().max().item()
        name = type(layer).__module__.partition(".")[0]
        print(f"{dtype}, {name:7}: outputs differ by {outputs:.0e}, gradients by {gradients:.0e}")
        assert max(outputs, gradients) < limit

# %% [markdown] lang="en"
# ## 2. Training mode and evaluation mode
#
# A prediction must not depend on which other images are in the batch. So the layer uses other
# statistics in evaluation than in training:
#
# | | training mode, `model.train()` | evaluation mode, `model.eval()` |
# |---|---|---|
# | mean and variance | of this batch | running mean and running variance |
# | output of an image depends on | all images of the batch | this image |
# | running statistics | updated | unchanged |
#
# The running statistics are an exponential moving average with momentum $m$,
#
# $$\text{running} \leftarrow (1 - m)\cdot\text{running} + m\cdot\text{batch},$$
#
# where PyTorch's default is $m = 0.1$. Some texts and frameworks call $1 - m$ the momentum. The
# running variance averages the *unbiased* variances of the batches, although the layer normalizes
# the batch with the biased one.

# %% [markdown] lang="zh"
# ## 2. 训练模式与评估模式
#
# 预测结果不应取决于小批量中还有哪些图像，所以该层在评估时使用的统计量与训练时不同：
#
# | | 训练模式 `model.train()` | 评估模式 `model.eval()` |
# |---|---|---|
# | 均值和方差 | 来自当前小批量 | 移动均值（running mean）和移动方差（running variance） |
# | 一幅图像的输出取决于 | 小批量中的所有图像 | 该图像本身 |
# | 移动统计量 | 更新 | 不变 |
#
# 移动统计量是动量为 $m$ 的指数移动平均（exponential moving average）：
#
# $$\text{running} \leftarrow (1 - m)\cdot\text{running} + m\cdot\text{batch},$$
#
# PyTorch 的默认值是 $m = 0.1$。有些教材和框架把 $1 - m$ 叫作动量。移动方差平均的是各小批量的*无偏*方差，而该层对小批量做归一化时用的是有偏方差。

# %%
layer = nn.BatchNorm2d(4)
mean, var = torch.zeros(4), torch.ones(4)  # where running statistics start
for _ in range(3):
    x = 3 + 2 * torch.randn(8, 4, 5, 5)
    layer(x)
    mean = 0.9 * mean + 0.1 * x.mean(dim=(0, 2, 3))
    var = 0.9 * var + 0.1 * x.var(dim=(0, 2, 3), correction=1)

print("running mean of the layer:", layer.running_mean)
print("running mean by hand:     ", mean)
assert torch.allclose(layer.running_mean, mean)
assert torch.allclose(layer.running_var, var)

for mode in (True, False):
    layer.train(mode)
    change = (layer(x)[0] - layer(x[:1])[0]).abs().max().item()
    name = "training" if mode else "evaluation"
    print(f"{name} mode: without the rest of its batch an image's output changes by {change:.3f}")

# %% [markdown] lang="en"
# The values have mean 3, but after three batches the running mean is far below: $0.9^3 = 0.729$
# of it is still the initial 0. `nk.BatchNorm2d(4, average="debiased")` corrects for the start.
#
# ## 3. A moving average that lags
#
# While a network is trained its weights change with each step, and the means of what its layers
# compute change with them. The moving average follows behind. Here is a channel whose mean rises
# by 0.05 with each step, seen by two layers in batches of 32. With momentum $m$ the running mean
# lies $(1 - m)/m$ steps behind: nine steps with 0.1, one step with 0.5. The larger momentum lags
# less and is noisier.

# %% [markdown] lang="zh"
# 数值的均值是 3，但三个小批量之后移动均值还远低于它：其中 $0.9^3 = 0.729$ 仍是初始值 0。`nk.BatchNorm2d(4, average="debiased")` 的移动平均会校正初始值的影响。
#
# ## 3. 滞后的移动平均
#
# 训练时网络的权重每一步都在变，各层所计算的数值的均值也随之改变，移动平均则跟在后面。下面的通道均值每一步上升 0.05，两个层以大小为 32 的小批量观察它。动量为 $m$ 时，移动均值落后 $(1 - m)/m$ 步：动量 0.1 落后九步，动量 0.5 落后一步。动量越大，滞后越小，噪声越大。

# %%
SLOPE, STEPS = 0.05, 100
generator = torch.Generator().manual_seed(0)
batches = [SLOPE * t + torch.randn(32, 1, generator=generator) for t in range(STEPS)]
running = {0.1: [], 0.5: []}
for momentum, values in running.items():
    layer = nn.BatchNorm1d(1, momentum=momentum)
    for batch in batches:
        layer(batch)
        values.append(layer.running_mean.item())
    late = range(STEPS // 2, STEPS)
    behind = sum(batches[t].mean().item() - values[t] for t in late) / len(late)
    expected = (1 - momentum) / momentum * SLOPE
    print(f"momentum {momentum}: {behind:.2f} behind the batches; by the formula {expected:.2f}")
    assert abs(behind - expected) < 0.05

chart(
    "The moving average follows behind",
    "step",
    "mean of the channel",
    [
        ("mean of the batch", range(STEPS), [b.mean().item() for b in batches], GREY, "dot"),
        ("running mean, momentum 0.1", range(STEPS), running[0.1], ORANGE, "solid"),
        ("running mean, momentum 0.5", range(STEPS), running[0.5], BLUE, "solid"),
    ],
)

# %% [markdown] lang="en"
# A second weakness: all batches weigh the same, however small. If the number of images is no
# multiple of the batch size, the last batch of an epoch is small and its mean is noisy, and that
# batch is the last one before the evaluation. Here the channel's mean is always 0; an epoch has
# 19 batches of 256 values and one of 8. Dots mark the running mean right after the small batch;
# the step that leads to a dot is printed as a root mean square beside that of the other batches.

# %% [markdown] lang="zh"
# 第二个弱点：无论小批量有多小，权重都一样。如果图像数不是批量大小的整数倍，每轮的最后一个小批量就比较小，其均值噪声较大，而它恰好是评估之前的最后一个。下面的通道均值始终为 0；每轮有 19 个大小为 256 的小批量和一个大小为 8 的小批量。圆点标出了这个最小的小批量刚过之后的移动均值；打印出来的是到达圆点的那一步与其余各步的均方根，以便比较。

# %%
generator = torch.Generator().manual_seed(0)
layer, values = nn.BatchNorm1d(1), []
for size in ([256] * 19 + [8]) * 8:
    layer(torch.randn(size, 1, generator=generator))
    values.append(layer.running_mean.item())
ends = range(19, len(values), 20)
squares = {"256 values": [], "8 values": []}
for t in range(20, len(values)):  # from the second epoch on
    step = values[t] - values[t - 1]
    squares["8 values" if t in ends else "256 values"].append(step * step)
for kind, each in squares.items():
    print(f"a batch of {kind} moves the running mean by {math.sqrt(sum(each) / len(each)):.3f}")

figure = go.Figure()
figure.add_scatter(y=values, name="running mean", line={"color": ORANGE})
figure.add_scatter(
    x=list(ends), y=[values[t] for t in ends], name="after the small batch", mode="markers",
    marker={"color": BLUE, "size": 9},
)  # fmt: skip
figure.update_layout(title="A small last batch kicks the moving average", template="plotly_white")
figure.update_layout(xaxis_title="step", yaxis_title="mean of the channel", width=760, height=380)
figure.show()

# %% [markdown] lang="en"
# ## 4. Four normalizers, four sets of means
#
# Batch, layer, group and instance normalization compute the same formula. They differ in which
# numbers share one mean and one variance. Below is a tensor of three samples, four channels and
# two positions; numbers that are normalized together have the same number and colour. Only batch
# normalization mixes samples, so only batch normalization needs running statistics for
# evaluation.

# %% [markdown] lang="zh"
# ## 4. 四种归一化，四组均值
#
# 批量归一化、层归一化（layer normalization）、组归一化（group normalization）和实例归一化（instance normalization）用的是同一个公式，区别在于哪些数共用一个均值和一个方差。下面的张量有三个样本、四个通道和两个位置；一起归一化的数编号和颜色相同。只有批量归一化会混合不同的样本，所以也只有它在评估时需要移动统计量。

# %%
N, C, S, GROUPS = 3, 4, 2, 2
n, c, _ = torch.meshgrid(torch.arange(N), torch.arange(C), torch.arange(S), indexing="ij")
pools = {
    "batch": c,  # a mean for each channel
    "layer": n,  # for each sample
    "group": n * GROUPS + c // (C // GROUPS),  # for each group of channels of a sample
    "instance": n * C + c,  # for each channel of a sample
}

figure = make_subplots(1, 4, subplot_titles=list(pools))
for column, pool in enumerate(pools.values(), start=1):
    cells = pool.reshape(N, C * S).tolist()
    figure.add_heatmap(
        z=cells, text=cells, texttemplate="%{text}", colorscale="Portland", showscale=False,
        xgap=3, ygap=3, row=1, col=column,
    )  # fmt: skip
figure.update_xaxes(
    title="channel", tickvals=[0.5, 2.5, 4.5, 6.5], ticktext=["0", "1", "2", "3"], showgrid=False
)
figure.update_yaxes(tickvals=[0, 1, 2], autorange="reversed", showgrid=False)
figure.update_yaxes(title="sample", col=1)
figure.update_layout(template="plotly_white", width=860, height=260, margin={"t": 40, "b": 50})
figure.show()


# %% [markdown] lang="en"
# The numbers of the picture are a program: normalizing each set by itself gives what PyTorch's
# four functions give.

# %% [markdown] lang="zh"
# 图中的编号就是程序：把每一组数分别归一化，结果与 PyTorch 的四个函数相同。


# %%
def normalize(x, pool, eps=1e-5):
    y = torch.empty_like(x)
    for number in pool.unique():
        chosen = pool == number
        values = x[chosen]
        y[chosen] = (values - values.mean()) / torch.sqrt(values.var(correction=0) + eps)
    return y


x = torch.randn(N, C, S, dtype=torch.float64)
by_torch = {
    "batch": F.batch_norm(x, None, None, training=True),
    "layer": F.layer_norm(x, [C, S]),
    "group": F.group_norm(x, GROUPS),
    "instance": F.instance_norm(x),
}
for name, pool in pools.items():
    largest = (normalize(x, pool) - by_torch[name]).abs().max().item()
    print(f"{name:8}: {len(pool.unique()):2} means; differs from PyTorch by {largest:.0e}")
    assert largest < 1e-10

# %% [markdown] lang="en"
# ## 5. The textbook's LeNet
#
# *Dive into Deep Learning* adds batch normalization to LeNet: sigmoids, average pooling, SGD with
# a learning rate of 1.0, batches of 256, ten epochs of Fashion-MNIST. Published builds of the
# book end with a training accuracy of 90 to 91 % each time, and with a test accuracy anywhere
# from 57.1 to 89.2 % ([85 builds](../noisy-test-accuracy.md)).
#
# We train the same network in the same way on fewer images: 4,960 of the 60,000, for 16 short
# epochs. 4,960 images are 19 batches of 256 and one of 96, and 60,000 images leave a last batch
# of 96, too. `offline=True` takes the data set from this machine, or else 5,000 + 1,000 of its
# images that come with normkit ([data](../data.md)).

# %% [markdown] lang="zh"
# ## 5. 教材中的 LeNet
#
# 《动手学深度学习》在 LeNet 中加入批量归一化：sigmoid 激活函数、平均汇聚、学习率为 1.0 的 SGD、批量大小 256，在 Fashion-MNIST 上训练十轮。在该书公开的各次构建中，训练准确率每次都是 90 到 91 %，而测试准确率从 57.1 到 89.2 % 都有（[85 次构建](../noisy-test-accuracy.zh.md)）。
#
# 我们用同样的方法训练同样的网络，只是图像较少：60,000 幅中的 4,960 幅，训练 16 个较短的轮次。4,960 幅图像分为 19 个大小为 256 的小批量和一个大小为 96 的小批量；60,000 幅图像的最后一个小批量也是 96。`offline=True` 使用本机上的数据集；如果本机没有，就使用随 normkit 附带的 5,000 + 1,000 幅图像（[数据](../data.md)）。

# %%
fashion = data.load("fashion-mnist", offline=True)
print(fashion.origin)
train, test = fashion.train.take(4_960, seed=0), fashion.test.take(1_000, seed=0)
EPOCHS = 16


def lenet(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 6, kernel_size=5), nn.BatchNorm2d(6), nn.Sigmoid(), nn.AvgPool2d(2),
        nn.Conv2d(6, 16, kernel_size=5), nn.BatchNorm2d(16), nn.Sigmoid(), nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 120), nn.BatchNorm1d(120), nn.Sigmoid(),
        nn.Linear(120, 84), nn.BatchNorm1d(84), nn.Sigmoid(),
        nn.Linear(84, 10),
    )  # fmt: skip
    for layer in model:
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
    return model


def fit(model, batch_size, lr, epochs, seed, split=train, momentum=0.0, **options):
    """Train; return each epoch's training accuracy and the model's state after it."""
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum)
    accuracies, states = [], []
    for epoch in range(epochs):
        model.train()
        right = images = 0
        for x, y in data.batches(split, batch_size, seed=seed, epoch=epoch, **options):
            scores = model(x)
            optimizer.zero_grad()
            F.cross_entropy(scores, y).backward()
            optimizer.step()
            right += (scores.argmax(1) == y).sum().item()
            images += len(y)
        accuracies.append(100 * right / images)
        states.append(copy.deepcopy(model.state_dict()))
    return accuracies, states


@torch.no_grad()
def test_accuracy(model, split=test, **options):
    """Return the percentage of test images that the model classifies correctly."""
    model.eval()
    parts = data.batches(split, 250, seed=0, shuffle=False, **options)
    return 100 * torch.cat([model(x).argmax(1) == y for x, y in parts]).float().mean().item()


def with_moving(model, states):
    """Return the test accuracy of each state with its moving average."""
    accuracies = []
    for state in states:
        model.load_state_dict(state)
        accuracies.append(test_accuracy(model))
    return accuracies


# %%
model = lenet(seed=0)
trained, states = fit(model, 256, lr=1.0, epochs=EPOCHS, seed=0)
moving = with_moving(model, states)

falls = {"training": trained, "test": moving}
for name, values in falls.items():
    fall = max(a - b for a, b in pairwise(values))
    print(f"{name} accuracy: {values[-1]:.1f} % at the end; largest fall in an epoch {fall:.1f}")

epochs = range(1, EPOCHS + 1)
chart(
    "LeNet with batch normalization: smooth in training, jumping in the test",
    "epoch",
    "accuracy, %",
    [
        ("training", epochs, trained, GREY, "dot"),
        ("test", epochs, moving, ORANGE, "solid"),
    ],
)

# %% [markdown] lang="en"
# The training accuracy rises with small falls, while the test accuracy jumps by several points
# from one epoch to the next. Overfitting does not look like this: it would widen the gap
# steadily.
#
# ## 6. Diagnosis
#
# Training accuracy is measured in training mode, test accuracy in evaluation mode. So before
# anything else, compare the two modes on the *same* training images. `nk.consistency` runs each
# batch through the model twice, once with its own statistics and once with the running ones, and
# tells where they part. We look at the network after the epoch with the lowest test accuracy of
# the second half.

# %% [markdown] lang="zh"
# 训练准确率上升时只有小幅回落，测试准确率却在相邻两轮之间跳动好几个百分点。过拟合不是这个样子：它会使差距稳定地扩大。
#
# ## 6. 诊断
#
# 训练准确率是在训练模式下测得的，测试准确率是在评估模式下测得的。所以首先要在*相同*的训练图像上比较两种模式。`nk.consistency` 让每个小批量通过模型两次，一次用小批量自己的统计量，一次用移动统计量，并指出两者从哪里开始不同。我们检查后半段训练中测试准确率最低那一轮之后的网络。

# %%
batches = list(data.batches(train, 256, seed=0, drop_last=True))
worst = min(range(EPOCHS // 2, EPOCHS), key=moving.__getitem__)
print(f"after epoch {worst + 1}: test accuracy {moving[worst]:.1f} %\n")
model.load_state_dict(states[worst])
print(nk.consistency(model, batches))

# %% [markdown] lang="en"
# *Off by* is the distance between the running statistics and the layer's input in training. The
# losses in the second line belong to the same weights and the same training images: any excess of
# the second loss over the first is due to the running statistics alone.
#
# `nk.recalibrate` replaces the running statistics by population statistics: mean and variance of
# the training images under the present weights. It uses no labels and leaves the weights alone.
# As the weights are the same, the accuracy that it gives back was lost by the statistics.

# %% [markdown] lang="zh"
# 表中的 *off by* 是移动统计量与该层在训练时的输入之间的距离。第二行的两个损失来自相同的权重和相同的训练图像：第二个损失比第一个高出的部分完全由移动统计量造成。
#
# `nk.recalibrate` 用总体统计量（population statistics），即训练图像在当前权重下的均值和方差，替换移动统计量。它不需要标签，也不改变权重。既然权重不变，由此恢复的准确率就是统计量所损失的部分。

# %%
print(nk.recalibrate(model, batches, progress=False))
print(f"\ntest accuracy: {moving[worst]:.1f} % → {test_accuracy(model):.1f} %")


def with_population(model, states):
    """Return the test accuracy of each state with population statistics."""
    accuracies = []
    for state in states:
        model.load_state_dict(state)
        nk.recalibrate(model, batches, samples=2_560, progress=False)
        accuracies.append(test_accuracy(model))
    return accuracies


population = with_population(model, states)
gain = sum(population) / EPOCHS - sum(moving) / EPOCHS
print(f"mean over all epochs: {gain:+.1f} points")
assert gain > 0

chart(
    "The same weights, other statistics",
    "epoch",
    "test accuracy, %",
    [
        ("moving average", epochs, moving, ORANGE, "solid"),
        ("population statistics", epochs, population, BLUE, "solid"),
    ],
)

# %% [markdown] lang="en"
# Population statistics bring back most of the deepest falls. The blue line still jumps, though
# less: there the weights themselves are worse. Each epoch ends with a step on 96 images, whose
# gradient is noisier than that of 256, at a learning rate of 1.0, and the evaluation comes right
# after it.
#
# ## 7. The mended network
#
# So two changes mend the network: `drop_last=True`, which leaves out the incomplete last batch
# (others in each epoch, as the loader shuffles), and `nk.recalibrate` before each evaluation. One
# training shows nothing about chance: here are three seeds of each, evaluated both ways.

# %% [markdown] lang="zh"
# 总体统计量使最深的几次下跌恢复了大部分。蓝线仍然跳动，只是幅度较小：在那些地方，权重本身变差了。每轮的最后一步只用 96 幅图像，其梯度比 256 幅图像的噪声更大，学习率又是 1.0，而评估紧接其后。
#
# ## 7. 修好的网络
#
# 因此修复网络需要两处改动：用 `drop_last=True` 去掉不完整的最后一个小批量（由于打乱了顺序，每轮去掉的图像不同），并在每次评估之前调用 `nk.recalibrate`。单次训练无法说明偶然性的影响，所以每种设置用三个随机种子训练，并用两种方式评估。

# %%
scores = {(0, "book"): (moving, population)}  # trained above
for seed in range(3):
    for kind in ("book", "dropped"):
        if (seed, kind) not in scores:
            model = lenet(seed)
            dropped = kind == "dropped"
            _, states = fit(model, 256, lr=1.0, epochs=EPOCHS, seed=seed, drop_last=dropped)
            scores[seed, kind] = with_moving(model, states), with_population(model, states)

head = f"test accuracy, %, epochs {EPOCHS // 2 + 1} to {EPOCHS}: mean (lowest)"
print(f"{head:48}", *(f"{f'seed {seed}':>13}" for seed in range(3)))
means = {}
for kind, text in (("book", "last batch kept"), ("dropped", "last batch dropped")):
    for number, statistics in enumerate(("moving average", "population")):
        late = [scores[seed, kind][number][EPOCHS // 2 :] for seed in range(3)]
        cells = [f"{sum(values) / len(values):.1f} ({min(values):.1f})" for values in late]
        print(f"{text + ', ' + statistics:48}", *(f"{cell:>13}" for cell in cells))
        means[kind, statistics] = sum(map(sum, late))
assert means["dropped", "population"] > means["book", "moving average"]

lines = []
for seed, stroke in enumerate(("solid", "dash", "dot")):
    book, _ = scores[seed, "book"]
    _, mended = scores[seed, "dropped"]
    lines.append((f"as in the book, seed {seed}", epochs, book, ORANGE, stroke))
    lines.append((f"mended, seed {seed}", epochs, mended, BLUE, stroke))
chart("The textbook's LeNet, mended", "epoch", "test accuracy, %", lines)

# %% [markdown] lang="en"
# In the run shown here the last row of the table has the highest mean for each seed. The jumps
# that are left in the first epochs are those of the weights, at a learning rate of 1.0; exercise 6
# lowers it.
#
# Three seeds and 1,000 test images show the direction. [Test accuracy that
# jumps](../noisy-test-accuracy.md) has the effects on the whole data set, with ten seeds and
# intervals. `normkit doctor` makes both measurements with one command ([guide](../doctor.md)).
#
# ## 8. Small batches and group normalization
#
# The statistics of two images are noisy. That noise is in training itself, where no recalibration
# takes it away. Group normalization takes its means within one image, so they do not depend on
# the batch size.
#
# The images of Fashion-MNIST have a black ground and one exposure, so any two batches have nearly
# the same mean. Photographs are not like that. In `fashion-mnist-lit` each image has a contrast
# and a brightness of its own ([data](../data.md)). The network is LeNet with ReLU and max
# pooling, with normalizers after the convolutions only, for images of 16 × 16 pixels. Its
# learning rate is in proportion to the batch size; it is trained for two epochs, with two seeds.

# %% [markdown] lang="zh"
# 在这里给出的运行结果中，对每个随机种子，表格最后一行的平均值都最高。最初几轮中余下的跳动来自权重本身，因为学习率是 1.0；练习 6 会降低它。
#
# 三个随机种子和 1,000 幅测试图像只能说明方向。在整个数据集上用十个随机种子得到的效果大小及其置信区间，见[跳动的测试准确率](../noisy-test-accuracy.zh.md)。`normkit doctor` 用一条命令完成这两项测量（[指南](../doctor.zh.md)）。
#
# ## 8. 小批量与组归一化
#
# 两幅图像的统计量噪声很大。这种噪声存在于训练本身，重新校准无法消除。组归一化在一幅图像内部取均值，因此这些均值不依赖批量大小。
#
# Fashion-MNIST 的图像都是黑色背景和同一种曝光，所以任意两个小批量的均值几乎相同，而照片并非如此。在 `fashion-mnist-lit` 中，每幅图像都有自己的对比度和亮度（[数据](../data.md)）。网络是采用 ReLU 和最大汇聚的 LeNet，只在卷积之后归一化，输入是 16 × 16 像素的图像。学习率与批量大小成正比，训练两轮，使用两个随机种子。


# %%
def small_lenet(seed, norm):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, kernel_size=5), norm(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 16, kernel_size=5), norm(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10),
    )  # fmt: skip


def group_norm(channels):
    return nn.GroupNorm(channels // 2, channels)


lit = data.load("fashion-mnist-lit", offline=True)
lit_train, lit_test = lit.train.take(4_000, seed=0), lit.test.take(1_000, seed=0)
lit_batches = list(data.batches(lit_train, 256, seed=0, size=16, drop_last=True))
SIZES = (2, 8, 32)
rows = {name: [] for name in ("BN, moving average", "BN, population", "GN")}
for size in SIZES:
    columns = {name: [] for name in rows}
    for seed in range(2):
        settings = {"lr": 0.04 * size / 32, "epochs": 2, "seed": seed, "momentum": 0.9}
        model = small_lenet(seed, nn.BatchNorm2d)
        fit(model, size, split=lit_train, size=16, **settings)
        columns["BN, moving average"].append(test_accuracy(model, lit_test, size=16))
        nk.recalibrate(model, lit_batches, progress=False)
        columns["BN, population"].append(test_accuracy(model, lit_test, size=16))
        model = small_lenet(seed, group_norm)
        fit(model, size, split=lit_train, size=16, **settings)
        columns["GN"].append(test_accuracy(model, lit_test, size=16))
    for name, values in columns.items():
        rows[name].append(values)

print("test accuracy, %, of two seeds", *(f"   batches of {size:<4}" for size in SIZES))
for name, by_size in rows.items():
    print(f"{name:30}", *(f"{'  '.join(f'{value:.1f}' for value in v):>18}" for v in by_size))
bn, gn = (sum(rows[name][0]) / 2 for name in ("BN, population", "GN"))
assert gn > bn  # with batches of two

strokes = zip(rows, ((ORANGE, "solid"), (ORANGE, "dot"), (BLUE, "solid")), strict=True)
chart(
    "Test accuracy by batch size, mean of two seeds",
    "batch size",
    "test accuracy, %",
    [
        (name, map(str, SIZES), [sum(values) / 2 for values in rows[name]], *stroke)
        for name, stroke in strokes
    ],
)

# %% [markdown] lang="en"
# With batches of two, batch normalization falls behind, and recalibration gives back little of it.
# With larger batches it is ahead. As the number of epochs is fixed, a larger batch also means
# fewer steps, which lowers the right end of both lines. Claim C20 of normkit's lab asks the same
# with five batch sizes, layer and instance normalization beside them, and intervals
# ([claims](../claims.md)).
#
# ## 9. Folding
#
# In evaluation batch normalization multiplies each channel by a constant and adds another. The
# convolution before it can do both, with other weights:
#
# $$W' = \frac{\gamma}{\sqrt{\sigma^2 + \varepsilon}}\,W, \qquad
# b' = \frac{\gamma}{\sqrt{\sigma^2 + \varepsilon}}\,(b - \mu) + \beta .$$
#
# A network can therefore be deployed without its batch normalization and computes the same.

# %% [markdown] lang="zh"
# 小批量只有两幅图像时，批量归一化落后，重新校准也只能挽回一小部分；小批量较大时则是它领先。由于轮数固定，小批量越大，步数就越少，所以两条线的右端都偏低。normkit 实验室的论断 C20 用五种批量大小检验同一问题，同时比较层归一化和实例归一化，并给出置信区间（[论断](../claims.md)）。
#
# ## 9. 折叠
#
# 在评估模式下，批量归一化把每个通道乘以一个常数，再加上另一个常数。它前面的卷积换一组权重就能完成这两件事：
#
# $$W' = \frac{\gamma}{\sqrt{\sigma^2 + \varepsilon}}\,W, \qquad
# b' = \frac{\gamma}{\sqrt{\sigma^2 + \varepsilon}}\,(b - \mu) + \beta .$$
#
# 所以部署时可以去掉批量归一化，而网络的计算结果不变。

# %%
model = lenet(seed=0)
fit(model, 256, lr=1.0, epochs=2, seed=0, drop_last=True)
nk.recalibrate(model, batches, progress=False)
model.eval()
x, _ = batches[0]

conv, norm = model[0], model[1]
scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
weight = conv.weight * scale.view(-1, 1, 1, 1)
bias = (conv.bias - norm.running_mean) * scale + norm.bias
largest = (F.conv2d(x, weight, bias) - norm(conv(x))).abs().max().item()
print(f"by hand, first layer: outputs differ by {largest:.0e}")

before, accuracy = model(x), test_accuracy(model)
handle = nk.fold(model, x)
print(handle)
print(f"test accuracy: {accuracy:.1f} % before, {test_accuracy(model):.1f} % after")
assert torch.allclose(model(x), before, atol=1e-4)

# %% [markdown] lang="en"
# Each batch normalization became an `nn.Identity`. A folded network is for evaluation only:
# nothing normalizes any more if it is trained. And folding writes the running statistics into the
# weights for good, right or wrong ones. So recalibrate first and fold last; `handle.undo()`
# restores the network.
#
# ## Summary
#
# - Normalizers share one formula and differ in which numbers share a mean and where that mean
#   comes from.
# - Batch normalization uses two sets of statistics. Where training is smooth and evaluation
#   jumps, compare the two modes first: `nk.consistency`.
# - A moving average lags behind the weights, and a small last batch kicks it. Use population
#   statistics for an evaluation that you want to trust, `nk.recalibrate`, and `drop_last=True` in
#   training.
# - Small batches make training itself noisy; group normalization does not depend on them.
# - Recalibrate, then fold, then ship.
#
# ## Exercises
#
# 1. Derive the gradient of batch normalization with respect to its input, and check it against
#    autograd.
# 2. How many of the last batches make up half of the running mean, with momentum 0.1 and with
#    0.01?
# 3. Which number of groups makes group normalization the layer normalization of section 4, and
#    which one the instance normalization?
# 4. A convolution without bias stands before a batch normalization. Multiply its weights by 10.
#    What happens to the output, and what to the gradient with respect to the weights?
# 5. What happens in training mode with a batch of one image, in `nn.BatchNorm1d` after a dense
#    layer, and in `nn.BatchNorm2d`?
# 6. Train the LeNet of section 5 with a learning rate of 0.1. Predict what becomes of the jumps
#    and of the gap between the two kinds of statistics, then look.
# 7. Can `nk.fold` remove a batch normalization that comes after a ReLU, which itself comes after
#    a convolution? And if another convolution follows?

# %% [markdown] lang="zh"
# 每个批量归一化都变成了 `nn.Identity`。折叠后的网络只能用于评估：如果再训练它，就不再有任何归一化。而且折叠会把移动统计量永久写入权重，不论对错。所以应当先重新校准，最后折叠；`handle.undo()` 可以恢复网络。
#
# ## 小结
#
# - 各种归一化方法的公式相同，区别在于哪些数共用一个均值，以及这个均值从哪里来。
# - 批量归一化使用两套统计量。如果训练平稳而评估跳动，首先比较两种模式：`nk.consistency`。
# - 移动平均滞后于权重，较小的最后一个小批量还会使它突变。要得到可信的评估结果，请用 `nk.recalibrate` 计算总体统计量，训练时设 `drop_last=True`。
# - 小批量使训练本身产生噪声；组归一化不依赖批量大小。
# - 先重新校准，再折叠，然后部署。
#
# ## 练习
#
# 1. 推导批量归一化对其输入的梯度，并用自动微分验证。
# 2. 动量为 0.1 和 0.01 时，最近多少个小批量构成移动均值的一半？
# 3. 组归一化取多少个组时就是第 4 节的层归一化？取多少个组时就是实例归一化？
# 4. 批量归一化之前有一个没有偏置的卷积。把它的权重乘以 10，输出会怎样？对权重的梯度会怎样？
# 5. 在训练模式下，如果小批量只有一幅图像，全连接层之后的 `nn.BatchNorm1d` 会怎样？`nn.BatchNorm2d` 会怎样？
# 6. 用学习率 0.1 训练第 5 节的 LeNet。先预测跳动的幅度和两种统计量之间的差距会怎样变化，再看结果。
# 7. 卷积之后是 ReLU，ReLU 之后是批量归一化，`nk.fold` 能去掉这个批量归一化吗？如果后面还有一个卷积呢？

# %% [markdown] lang="en"
# ## Answers
#
# ### Exercise 1
#
# With $g = \partial L / \partial y$ and means over the values that share $\mu$ and $\sigma^2$,
#
# $$\frac{\partial L}{\partial x} = \frac{\gamma}{\sqrt{\sigma^2 + \varepsilon}}
# \left(g - \overline{g} - \hat{x}\,\overline{g\,\hat{x}}\right).$$
#
# The two subtracted terms come from $\mu$ and $\sigma^2$, which depend on $x$, too. Consequently
# the gradient has mean zero over each channel.

# %% [markdown] lang="zh"
# ## 答案
#
# ### 练习 1
#
# 记 $g = \partial L / \partial y$，上划线表示对共用 $\mu$ 和 $\sigma^2$ 的数值取均值，则
#
# $$\frac{\partial L}{\partial x} = \frac{\gamma}{\sqrt{\sigma^2 + \varepsilon}}
# \left(g - \overline{g} - \hat{x}\,\overline{g\,\hat{x}}\right).$$
#
# 减去的两项来自同样依赖于 $x$ 的 $\mu$ 和 $\sigma^2$。因此梯度在每个通道上的均值为零。


# %%
def average_of(values):
    return values.mean(dim=(0, 2, 3), keepdim=True)


x = torch.randn(8, 4, 5, 5, dtype=torch.float64, requires_grad=True)
gamma, beta = torch.rand(1, 4, 1, 1, dtype=torch.float64), 0.0
g = torch.randn_like(x)
by_autograd = torch.autograd.grad(batch_norm(x, gamma, beta), x, g)[0]

with torch.no_grad():
    deviation = torch.sqrt(x.var(dim=(0, 2, 3), correction=0, keepdim=True) + 1e-5)
    x_hat = (x - average_of(x)) / deviation
    by_hand = gamma / deviation * (g - average_of(g) - x_hat * average_of(g * x_hat))
print(f"differs from autograd by {(by_hand - by_autograd).abs().max().item():.0e}")
print(f"mean over a channel at most {average_of(by_autograd).abs().max().item():.0e}")
assert torch.allclose(by_hand, by_autograd)

# %% [markdown] lang="en"
# ### Exercise 2
#
# The batch before $k$ others has weight $m(1 - m)^k$; the last $n$ batches together have
# $1 - (1 - m)^n$. That reaches one half at $n = \ln 0.5 / \ln(1 - m)$.

# %% [markdown] lang="zh"
# ### 练习 2
#
# 之后又来了 $k$ 个小批量的那个小批量，权重为 $m(1 - m)^k$；最近 $n$ 个小批量的权重之和为 $1 - (1 - m)^n$。当 $n = \ln 0.5 / \ln(1 - m)$ 时达到一半。

# %%
for momentum in (0.1, 0.01):
    print(f"momentum {momentum}: {math.log(0.5) / math.log(1 - momentum):.1f} batches")

# %% [markdown] lang="en"
# ### Exercise 3
#
# One group holds all channels of a sample, which is the layer normalization of section 4; as many
# groups as channels give instance normalization. Without $\gamma$ and $\beta$ the equality is
# exact. With them it is not: `nn.LayerNorm` learns one $\gamma$ for each channel and position,
# `nn.GroupNorm` one for each channel.

# %% [markdown] lang="zh"
# ### 练习 3
#
# 只有一个组时，该组包含一个样本的所有通道，就是第 4 节的层归一化；组数等于通道数时就是实例归一化。不计 $\gamma$ 和 $\beta$ 时两者完全相等；计入时则不然：`nn.LayerNorm` 为每个通道的每个位置学习一个 $\gamma$，`nn.GroupNorm` 只为每个通道学习一个。

# %%
x = torch.randn(3, 4, 5, 5)
assert torch.allclose(F.group_norm(x, 1), F.layer_norm(x, [4, 5, 5]), atol=1e-5)
assert torch.allclose(F.group_norm(x, 4), F.instance_norm(x), atol=1e-5)
print("parameters γ:", nn.LayerNorm([4, 5, 5]).weight.numel(), nn.GroupNorm(1, 4).weight.numel())

# %% [markdown] lang="en"
# ### Exercise 4
#
# The output does not change, but for $\varepsilon$: mean and deviation grow by the same factor as
# the values. The gradient becomes a tenth. So weights before a batch normalization have no
# meaningful size, and the larger they are, the smaller is the relative step that a fixed learning
# rate makes.

# %% [markdown] lang="zh"
# ### 练习 4
#
# 除了 $\varepsilon$ 的影响之外，输出不变：均值和标准差与数值按同样的倍数增大。梯度变为十分之一。所以批量归一化之前的权重，其大小没有意义；权重越大，固定的学习率所走的相对步长就越小。

# %%
x, downstream = torch.randn(16, 3, 8, 8), torch.randn(16, 4, 6, 6)
conv, norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
outputs, gradients = [], []
for factor in (1, 10):
    with torch.no_grad():
        conv.weight *= factor
    outputs.append(norm(conv(x)))
    gradients.append(torch.autograd.grad(outputs[-1], conv.weight, downstream)[0])
print(f"outputs differ by {(outputs[0] - outputs[1]).abs().max().item():.0e}")
print(f"gradient, times as large: {(gradients[1].norm() / gradients[0].norm()).item():.3f}")

# %% [markdown] lang="en"
# ### Exercise 5
#
# After a dense layer a channel of one image is one number. Its variance is 0 and every output
# would be $\beta$, so PyTorch refuses. `nn.BatchNorm2d` takes its means over the positions of the
# one image: it computes instance normalization. In evaluation it then uses running statistics,
# averages over many images, by which no image was normalized in training.

# %% [markdown] lang="zh"
# ### 练习 5
#
# 在全连接层之后，一幅图像的一个通道只有一个数。它的方差是 0，所有输出都会是 $\beta$，所以 PyTorch 拒绝执行。`nn.BatchNorm2d` 在这一幅图像的所有位置上取均值，也就是做实例归一化。评估时它改用移动统计量，即多幅图像的平均，而训练时没有一幅图像用它做过归一化。

# %%
try:
    nn.BatchNorm1d(4)(torch.randn(1, 4))
except ValueError as error:
    print("BatchNorm1d:", error)
x = torch.randn(1, 4, 5, 5)
largest = (nn.BatchNorm2d(4)(x) - F.instance_norm(x)).abs().max().item()
print(f"BatchNorm2d: differs from instance normalization by {largest:.0e}")
assert largest < 1e-5

# %% [markdown] lang="en"
# ### Exercise 6
#
# Smaller steps change the weights, and with them the means, less from batch to batch. The moving
# average lags less, and the kick of the last step is smaller. Whether the network learns as much
# in as many steps is another question: compare the averages.

# %% [markdown] lang="zh"
# ### 练习 6
#
# 步长越小，权重在相邻小批量之间的变化越小，均值的变化也越小。移动平均的滞后变小，最后一步造成的突变也变小。同样的步数能否学到同样多，则是另一个问题：请比较平均值。

# %%
model = lenet(seed=0)
_, states = fit(model, 256, lr=0.1, epochs=EPOCHS, seed=0)
slow = with_moving(model, states), with_population(model, states)
both = {"1.0": (moving, population), "0.1": slow}
for lr, (average, exact) in both.items():
    late = range(EPOCHS // 2, EPOCHS)
    jump = sum(abs(average[t] - average[t - 1]) for t in late) / len(late)
    gap = sum(exact[t] - average[t] for t in late) / len(late)
    mean = sum(exact[t] for t in late) / len(late)
    print(f"learning rate {lr}: mean jump of the test accuracy {jump:.1f} points; with population")
    print(f"    statistics {gap:+.1f} points, {mean:.1f} % on average")

# %% [markdown] lang="en"
# ### Exercise 7
#
# Not into the convolution before it: the ReLU between the two is not linear, and a scale and
# shift do not pass it. `nk.fold` leaves the layer and says why. Into a convolution after it, yes,
# if that one does not pad: the folded convolution would shift the zeros of the border, too.

# %% [markdown] lang="zh"
# ### 练习 7
#
# 不能折叠到前面的卷积中：两者之间的 ReLU 不是线性的，缩放和平移不能穿过它。`nk.fold` 会保留该层并说明原因。可以折叠到后面的卷积中，前提是该卷积不做填充：否则折叠后的卷积会把边界上填充的零也一并平移。

# %%
warnings.filterwarnings("ignore", "fold changed nothing")  # the handle says it, too
for after in ([], [nn.Conv2d(4, 2, 3)], [nn.Conv2d(4, 2, 3, padding=1)]):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), *after)
    model(torch.randn(16, 3, 8, 8))  # a step of training: running statistics other than 0 and 1
    print(nk.fold(model.eval(), torch.randn(2, 3, 8, 8)), end="\n\n")
