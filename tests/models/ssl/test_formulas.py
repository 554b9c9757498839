"""Every algorithm over several steps against its formulas, row by row in plain numpy."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from models.ssl import algorithms
from tests.models.ssl.making import NUM_CLASSES, NUM_SAMPLES, algorithm, network, step

C = range(NUM_CLASSES)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def cross_entropy(z, target):
    """target: a class or a distribution."""
    log = np.log(softmax(z))
    return -sum(t * v for t, v in zip(target, log, strict=True)) if np.ndim(target) else -log[target]


class Plain:
    """A step's rows without the padding, their logits in float64, and what the formulas of all have in common."""

    def __init__(self, at, model, ema, options):
        def logits(network, views, valid):
            with torch.no_grad():
                return list(network(views).double().numpy()[valid])

        unlabelled, labelled = at.unlabelled.valid.numpy(), at.labelled.valid.numpy()
        self.rows, self.options, self.t = np.flatnonzero(unlabelled), options, at.progress
        self.ids = at.unlabelled.sample_ids[unlabelled]
        self.labels = at.labelled.labels.numpy()[labelled]
        self.adjustment = 0.7 * np.log(np.array([40, 10, 4, 1]) / 55)
        self.z_labelled = [z + self.adjustment for z in logits(model, at.weak_labelled(), labelled)]
        self.z_weak = logits(model, at.weak(), unlabelled)
        self.z_teacher = logits(ema, at.weak(), unlabelled)
        self.z_strong = logits(model, at.strong(), unlabelled)
        self.q = [softmax(z) for z in self.z_weak]
        self.at, self.model = at, model

    def labelled(self):
        return np.mean([cross_entropy(z, y) for z, y in zip(self.z_labelled, self.labels, strict=True)])

    def unlabelled(self, weights, targets, logits=None):
        logits = self.z_strong if logits is None else logits
        rows = zip(weights, logits, targets, strict=True)
        return sum(w * cross_entropy(z, target) for w, z, target in rows) / len(weights)


def supervised(p, state):
    return p.labelled(), 0.0, [0.0] * len(p.rows)


def fixmatch(p, state):
    weights = [float(q.max() >= p.options.threshold) for q in p.q]
    return p.labelled(), p.unlabelled(weights, [q.argmax() for q in p.q]), weights


def pseudo_label(p, state):
    ramp = min(1, p.t / 0.4)
    weights = [ramp * (q.max() >= p.options.threshold) for q in p.q]
    return p.labelled(), p.unlabelled(weights, [q.argmax() for q in p.q], p.z_weak), weights


def mean_teacher(p, state):
    ramp = min(1, p.t / 0.4)
    pairs = zip(p.z_strong, p.z_teacher, strict=True)
    distances = [np.mean([(a - b) ** 2 for a, b in zip(softmax(s), softmax(t), strict=True)]) for s, t in pairs]
    return p.labelled(), ramp * np.mean(distances), [ramp] * len(p.rows)


def uda(p, state):
    weights = [float(q.max() >= p.options.threshold) for q in p.q]
    targets = [q ** (1 / p.options.temperature) / (q ** (1 / p.options.temperature)).sum() for q in p.q]
    assert p.options.temperature != 1 and not np.allclose(targets, p.q)
    kept = list(zip(p.z_labelled, p.labels, strict=True))
    if p.options.annealing != "none":
        a = {"linear": p.t, "log": 1 - math.exp(-p.t * 5), "exp": math.exp((p.t - 1) * 5)}[p.options.annealing]
        eta = a * (1 - 1 / NUM_CLASSES) + 1 / NUM_CLASSES
        kept = [(z, y) for z, y in kept if softmax(z)[y] <= eta]
        state["kept"] = [*state.get("kept", []), len(kept)]
    labelled = np.mean([cross_entropy(z, y) for z, y in kept]) if kept else 0.0
    return labelled, p.unlabelled(weights, targets), weights


def flexmatch(p, state):
    learned = state.setdefault("learned", dict.fromkeys(range(NUM_SAMPLES)))
    counts = [sum(c == k for c in learned.values()) for k in C]
    unused = sum(c is None for c in learned.values())
    beta = [count / max(*counts, unused) for count in counts]
    classes = [q.argmax() for q in p.q]
    threshold = p.options.threshold
    weights = [float(q.max() >= threshold * beta[c] / (2 - beta[c])) for q, c in zip(p.q, classes, strict=True)]
    for sample in set(p.ids):
        found = [c for i, q, c in zip(p.ids, p.q, classes, strict=True) if i == sample and q.max() >= threshold]
        if found:
            learned[sample] = max(found)
    return p.labelled(), p.unlabelled(weights, classes), weights


def freematch(p, state):
    m, uniform = p.options.momentum, np.full(NUM_CLASSES, 1 / NUM_CLASSES)
    classes = [q.argmax() for q in p.q]
    hist = np.array([np.mean([c == k for c in classes]) for k in C])
    tau = state["tau"] = m * state.get("tau", 1 / NUM_CLASSES) + (1 - m) * np.mean([q.max() for q in p.q])
    p_t = state["p"] = m * state.get("p", uniform) + (1 - m) * np.mean(p.q, axis=0)
    h_t = state["h"] = m * state.get("h", uniform) + (1 - m) * hist
    weights = [float(q.max() >= tau * p_t[c] / p_t.max()) for q, c in zip(p.q, classes, strict=True)]
    strong = [softmax(z) for z, w in zip(p.z_strong, weights, strict=True) if w]
    mean, seen = np.mean(strong, axis=0), [np.mean([s.argmax() == k for s in strong]) for k in C]
    a = p_t / h_t
    b = np.array([mean[k] / seen[k] if seen[k] else 0 for k in C])
    fairness = sum(x * math.log(y + 1e-12) for x, y in zip(a / a.sum(), b / b.sum(), strict=True))
    unlabelled = p.unlabelled(weights, classes) + p.options.fairness_weight * fairness
    return p.labelled(), unlabelled, weights


def softmatch(p, state):
    m = p.options.momentum
    p_t = state["p"] = m * state.get("p", np.full(NUM_CLASSES, 1 / NUM_CLASSES)) + (1 - m) * np.mean(p.q, axis=0)
    uniform = [q / p_t / (q / p_t).sum() for q in p.q]
    confidence = [u.max() for u in uniform]
    mu = state["mu"] = m * state.get("mu", 1 / NUM_CLASSES) + (1 - m) * np.mean(confidence)
    var = state["var"] = m * state.get("var", 1.0) + (1 - m) * np.var(confidence, ddof=1)
    weights = [math.exp(-(min(u - mu, 0) ** 2) / (2 * var / p.options.n_sigma**2)) for u in confidence]
    return p.labelled(), p.unlabelled(weights, [q.argmax() for q in p.q]), weights


def mixmatch(p, state):
    at, alpha, ramp = p.at, p.options.alpha, min(1, p.t / p.options.ramp)
    views = {"labelled": at.weak_labelled(), "weak": at.weak(), "weak-2": at.weak("weak-2")}
    with torch.no_grad():
        second = [softmax(z) for z in p.model(views["weak-2"]).double().numpy()[p.rows]]
    guesses = []
    for a, b in zip(p.q, second, strict=True):
        power = ((a + b) / 2) ** (1 / p.options.temperature)
        guesses.append(power / power.sum())
    known = [np.eye(NUM_CLASSES)[y] for y in p.labels]
    images, targets, lambdas, keys = [], known + guesses + guesses, [], ([], [])
    for purpose, view in views.items():
        batch = at.labelled if purpose == "labelled" else at.unlabelled
        draw, valid = at.draw(f"mix-{purpose}", batch), batch.valid.numpy()
        images += list(view.double().numpy()[valid])
        lambdas += [max(x, 1 - x) for x in stats.beta.ppf(draw(0)[valid], alpha, alpha)]
        for number in range(2):
            keys[number].extend(draw(1 + number)[valid])
    orders = [sorted(range(len(key)), key=key.__getitem__) for key in keys]
    losses = []
    for i, j in sorted(zip(*orders, strict=True)):
        image = lambdas[i] * images[i] + (1 - lambdas[i]) * images[j]
        target = lambdas[i] * targets[i] + (1 - lambdas[i]) * targets[j]
        with torch.no_grad():
            z = p.model(torch.from_numpy(image).float()[None]).double().numpy()[0]
        own = cross_entropy(z + p.adjustment, target) if i < len(known) else np.mean((softmax(z) - target) ** 2)
        losses.append(own)
    return np.mean(losses[: len(known)]), ramp * np.mean(losses[len(known) :]), [ramp] * len(p.rows)


PLAIN = [fixmatch, flexmatch, freematch, mean_teacher, mixmatch, pseudo_label, softmatch, supervised, uda]


def _compare(plain, steps, **options):
    """The state that the plain version ends with, and all weights."""
    tested, state, weights = algorithm(plain.__name__, **options), {}, []
    for number in steps:
        model, ema = network(seed=number), network(seed=100 + number)
        at = step(model, number, ema)
        found = tested(at)
        labelled, unlabelled, expected = plain(Plain(at, model, ema, tested.options), state)
        assert found.labelled.item() == pytest.approx(labelled, rel=1e-4)
        assert found.unlabelled.item() == pytest.approx(unlabelled, rel=1e-4, abs=1e-7)
        np.testing.assert_allclose(found.weight[at.valid], expected, rtol=1e-4, atol=1e-8)
        weights += expected
    return tested, state, weights


def test_every_algorithm_has_a_plain_version():
    assert [plain.__name__ for plain in PLAIN] == list(algorithms())


@pytest.mark.parametrize("plain", PLAIN, ids=lambda plain: plain.__name__)
def test_losses_and_weights_equal_the_plain_version(plain):
    _, _, weights = _compare(plain, range(10))
    if plain not in (supervised, mean_teacher, mixmatch):
        assert 0.1 < np.mean([w > 0.5 * max(weights) for w in weights]) < 0.97, "both cases occur"


@pytest.mark.parametrize("annealing", ["linear", "log", "exp"])
def test_annealing_of_uda_leaves_out_what_is_known_well(annealing):
    _, state, _ = _compare(uda, range(10), annealing=annealing)
    assert 0 < sum(state["kept"]) < 7 * 10


@pytest.mark.parametrize(("temperature", "alpha", "ramp"), [(1.0, 0.75, 0.0), (0.1, 2.0, 0.4)])
def test_mixmatch_with_other_settings(temperature, alpha, ramp):
    if ramp:
        _compare(mixmatch, range(3), temperature=temperature, alpha=alpha, ramp=ramp)
    else:
        at = step(network())
        assert (algorithm("mixmatch", ramp=0.0)(at).weight[at.valid] == 1).all()


def test_state_equals_the_plain_version():
    free, state, _ = _compare(freematch, range(4))
    np.testing.assert_allclose(free.confidence, state["tau"], rtol=1e-5)
    np.testing.assert_allclose(free.probability, state["p"], rtol=1e-5)
    np.testing.assert_allclose(free.histogram, state["h"], rtol=1e-5)
    soft, state, _ = _compare(softmatch, range(4))
    np.testing.assert_allclose([soft.mu, soft.variance], [state["mu"], state["var"]], rtol=1e-4)
    np.testing.assert_allclose(soft.probability, state["p"], rtol=1e-5)
    flex, state, _ = _compare(flexmatch, range(6))
    expected = [NUM_CLASSES if state["learned"][i] is None else state["learned"][i] for i in range(NUM_SAMPLES)]
    assert flex.learned[:-1].tolist() == expected
    assert len(set(expected)) > 2


@pytest.mark.parametrize("counts", [(0, 0, 0, 0), (1, 2, 3, 4), (30, 15, 5, 0), (12, 12, 12, 12), (0, 59, 0, 1)])
def test_flexmatch_thresholds_for_given_counts(counts):
    tested, at = algorithm("flexmatch", threshold=0.9), step(network())
    tested.learned[: sum(counts)] = torch.repeat_interleave(torch.tensor(counts)).int()
    most = max(*counts, NUM_SAMPLES - sum(counts))
    for c, count in enumerate(counts):
        threshold = 0.9 * (count / most) / (2 - count / most)
        for confidence in np.arange(0.31, 1, 0.04):
            q = torch.full((24, NUM_CLASSES), (1 - confidence) / 3)
            q[:, c] = confidence
            before = tested.learned.clone()
            classes, weight = tested.targets(at, q)
            tested.learned.copy_(before)
            assert (classes == c).all() and (weight == float(confidence >= threshold)).all()


def test_mixmatch_mixes_every_valid_row_once_and_padding_never():
    at = step(network())
    rest, partner = algorithm("mixmatch")._mixture(at)
    valid = torch.cat([at.labelled.valid, at.unlabelled.valid, at.unlabelled.valid]).numpy()
    assert sorted(partner[valid]) == list(np.flatnonzero(valid))
    assert (partner[~valid] == np.flatnonzero(~valid)).all()
    assert (rest >= 0).all() and (rest <= 0.5).all()


def test_freematch_has_no_fairness_loss_where_no_row_counts():
    """Predictions as even as can be but for one class that is below its threshold."""
    tested = algorithm("freematch")
    at = step(network(scale=0.01))
    logits = torch.zeros(24, NUM_CLASSES, requires_grad=True)
    loss = tested.unlabelled_loss(at, logits, torch.zeros(24, dtype=torch.int64), torch.zeros(24))
    loss.backward()
    assert loss.item() == 0 and (logits.grad == 0).all()
