"""The stages of a recipe, in the order in which they can run."""

import math
from collections.abc import Mapping

from pipeline import (
    class_names,
    cluster_labels,
    clustering,
    cross_fit,
    embed,
    encode,
    evaluate,
    export,
    fold,
    index,
    neighbours,
    proxy,
    pseudo_label,
    report,
    score,
    select,
    split,
    ssl,
    trust,
)
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.index import DataConfig
from pipeline.recipe import Recipe
from pipeline.stage import STAGES, Run, Stage
from pipeline.versions import Since

ROUNDS = ("", " round 2")
"""What follows the names of ssl and pseudo_label in the titles of each round."""


def models(recipe: Recipe) -> list[str]:
    """The titles of all its semi-supervised trainings, and of some more."""
    folds = [_fold(number) for number in range(recipe.split.folds or 0)]
    return [f"ssl{which}{fold_}" for fold_ in ("", *folds) for which in ROUNDS]


def _fold(number: int) -> str:
    """What follows the names of a fold's stages in their titles."""
    return f" fold {number + 1}"


def build(recipe: Recipe, since: Since | None = None) -> list[Stage]:
    """Every stage after its inputs; the same recipe gives the same keys anywhere.

    since: what a refresh takes from the version before; those stages come first.
    """
    return _Plan(recipe, since or Since()).stages


class _Plan:
    """The stages as they are added; `learn` and `look` add what every fold has of its own, after its title."""

    def __init__(self, recipe: Recipe, since: Since) -> None:
        self.recipe, self.since, self.seed = recipe, since, recipe.seed
        class_names.check(recipe.data, recipe.evaluate.test_shards if recipe.evaluate else ())
        self.stages: list[Stage] = since.stages()
        tests = {}
        if recipe.evaluate is not None:  # first, since it is small: a missing test shard is told at once
            test = DataConfig.model_validate(
                {**recipe.data.model_dump(), "shards": recipe.evaluate.test_shards, "labels": None}
            )
            tests = {"test_index": self.add("index", 1, index.IndexConfig.of(test), {}, index.run, "index test")}
        self.data = self.add("index", 1, index.IndexConfig.of(recipe.data), {}, index.run)
        encoded = {}
        if recipe.encode is not None:
            source = encode.EncodeStageConfig.of(recipe.encode)
            wanted = () if recipe.encode.table else ("index",)
            encoded = {"encode": self.add("encode", 1, source, {"index": self.data}, encode.run, images=wanted)}
        sources = {"index": self.data, **(encoded if recipe.split.draw == "typiclust" else {}), **since.split}
        settings = split.SplitStageConfig.of(self.seed, recipe.split)
        parts = self.add("split", 2, settings, sources, split.run)
        found = self.learn(parts) if recipe.ssl else self.cluster(encoded)
        found |= self.look(found["pseudo_label"])
        found |= self.cross_fit(parts, found) if recipe.split.folds else {"trust": self.judge(parts, found)}
        self.finish({"index": self.data, **tests, **encoded, "split": parts, **found})

    def add(
        self,
        name: str,
        version: int,
        config: Config,
        inputs: Mapping[str, Stage],
        run: Run,
        title: str = "",
        images: tuple[str, ...] = (),
    ) -> Stage:
        """One more stage."""
        assert name in STAGES, name
        self.stages.append(Stage(name, version, config, inputs, run, title, images))
        return self.stages[-1]

    def cluster(self, encoded: Mapping[str, Stage]) -> dict[str, Stage]:
        """Clusters of embeddings for pseudo-labels, by the names under which a report reads them."""
        settings = self.recipe.cluster
        assert settings is not None
        config = neighbours.NeighboursConfig(k=settings.neighbours)
        near = self.add("neighbours", 1, config, encoded, neighbours.run)
        heads = clustering.ClusterConfig(seed=self.seed, num_clusters=self.recipe.data.num_classes, training=settings)
        model = self.add("cluster", 1, heads, {**encoded, "neighbours": near}, clustering.run)
        sources = {**encoded, "cluster": model}
        labels = self.add("pseudo_label", 1, cluster_labels.ClusterLabelConfig(), sources, cluster_labels.run)
        return {"neighbours": near, "cluster": model, "pseudo_label": labels}

    def learn(self, parts: Stage, which: str = "") -> dict[str, Stage]:
        """A semi-supervised model and its pseudo-labels, in one round or two; parts: which labels it may see."""
        settings = self.recipe.ssl
        assert settings is not None
        labels = {"index": self.data, "split": parts}
        predictions = self.recipe.pseudo_label or pseudo_label.PseudoLabelConfig()

        def taught(round_: str, confident: float | None = None, **first_round: Stage) -> dict[str, Stage]:
            start = self.since.ssl.get(f"ssl{round_}{which}", {})
            steps = math.ceil(self.since.steps_fraction * settings.steps) if start else settings.steps
            training = settings.model_copy(update={"steps": steps, "second_round": None})
            num_classes = self.recipe.data.num_classes
            config = ssl.SslConfig(seed=self.seed, num_classes=num_classes, training=training, confident=confident)
            sources = {**labels, **first_round, **start}
            model = self.add("ssl", 3, config, sources, ssl.run, f"ssl{round_}{which}", ("index",))
            sources, title = {**labels, "ssl": model}, f"pseudo_label{round_}{which}"
            is_last = not which and (round_ == ROUNDS[1] or settings.second_round is None)
            kept = predictions if is_last else predictions.model_copy(update={"keep": ()})
            guesses = self.add("pseudo_label", 2, kept, sources, pseudo_label.run, title, ("index",))
            return {"ssl": model, "pseudo_label": guesses}

        first = taught(ROUNDS[0])
        if settings.second_round is None:
            return first
        second = taught(ROUNDS[1], settings.second_round.confident, first_round=first["pseudo_label"])
        return {"first_ssl": first["ssl"], "first_round": first["pseudo_label"], **second}

    def look(self, labels: Stage, which: str = "") -> dict[str, Stage]:
        """The proxy that learns these pseudo-labels, and the scores of what it did."""
        recipe, whole = self.recipe, {"index": self.data, "pseudo_label": labels}
        config = proxy.ProxyConfig(seed=self.seed, num_classes=recipe.data.num_classes, training=recipe.proxy)
        images = () if recipe.proxy.random_crop else ("index",)
        found = {"proxy": self.add("proxy", 5, config, whole, proxy.run, f"proxy{which}", images)}
        if recipe.needs_embeddings:
            looked = {**whole, **found}
            found["embed"] = self.add("embed", 1, embed.EmbedConfig(), looked, embed.run, f"embed{which}", ("index",))
        found["score"] = self.add(
            "score", 2, recipe.score, {"pseudo_label": labels, **found}, score.run, f"score{which}"
        )
        return found

    def judge(self, parts: Stage, found: Mapping[str, Stage], which: str = "") -> Stage:
        """What the labels that `parts` holds out say; of a fold it is a stage of another name, as it is no verdict."""
        names = ["pseudo_label", "proxy", "score"] + (["first_round", "ssl"] if "first_round" in found else [])
        sources = {"split": parts, **{name: found[name] for name in names}}
        name = "fold_trust" if which else "trust"
        return self.add(name, 3, trust.TrustConfig(seed=self.seed), sources, trust.run, f"trust{which}")

    def cross_fit(self, parts: Stage, found: Mapping[str, Stage]) -> dict[str, Stage]:
        """What all labels say, each held out once from trainings of its fold; and these, by their titles."""
        settings = parts.config
        assert isinstance(settings, split.SplitStageConfig) and settings.settings.folds is not None
        before = len(self.stages)
        sources = {"split": parts, "score": found["score"]}
        if "first_round" in found:
            sources["ssl"] = found["ssl"]
        for number in range(settings.settings.folds):
            which, config = _fold(number), fold.FoldConfig.of_fold(number, settings)
            own = self.add("fold", 1, config, {"split": parts}, fold.run, which.strip())
            learned = self.learn(own, which)
            learned |= self.look(learned["pseudo_label"], which)
            sources[f"pseudo_label:{number}"] = learned["pseudo_label"]
            sources[f"trust:{number}"] = self.judge(own, learned, which)
        folds = {f"fold:{stage.title}": stage for stage in self.stages[before:]}
        return {"trust": self.add("trust", 3, trust.TrustConfig(seed=self.seed), sources, cross_fit.run), **folds}

    def finish(self, inputs: dict[str, Stage]) -> None:
        """The coresets, what they are worth, and the report of all that is in `inputs`."""
        recipe, data, labels, scores = self.recipe, self.data, inputs["pseudo_label"], inputs["score"]
        known: dict[str, Stage] = {
            name: inputs[name] for name in ("score", "split", "trust", "embed") if name in inputs
        }
        selections = {}
        for config in recipe.select:
            name = config.name
            if config.seed is None:
                config = config.model_copy(update={"seed": self.seed})
            earlier = self.since.select.get(name, {})
            chosen = self.add("select", 5, config, {**known, **earlier}, select.run, f"select {name}")
            given = {"index": data, "split": known["split"], "pseudo_label": labels, "score": scores, "select": chosen}
            inputs[f"select:{name}"] = selections[f"select:{name}"] = chosen
            inputs[f"export:{name}"] = self.add("export", 4, recipe.export, given, export.run, f"export {name}")
        if recipe.evaluate is not None:
            tests = {"index": data, "test_index": inputs["test_index"]}
            inputs["evaluate"] = self.add(
                "evaluate",
                1,
                evaluate.EvaluateConfig.of(recipe.evaluate, self.seed, recipe.data),
                {**tests, **selections},
                evaluate.run,
                images=("test_index",) if recipe.evaluate.training.random_crop else ("index", "test_index"),
            )
        self.add("report", 2, recipe.report, inputs, report.run)


def needed(stages: list[Stage], name: str) -> list[Stage]:
    """The stages called `name` and all that they read, in the plan's order; UserError if the recipe has none."""
    wanted = {stage.key for stage in stages if stage.name == name}
    if not wanted:
        raise UserError(f"the recipe has no {name!r} section: add one, or run another command")
    for stage in reversed(stages):
        if stage.key in wanted:
            wanted |= {source.key for source in stage.inputs.values()}
    return [stage for stage in stages if stage.key in wanted]
