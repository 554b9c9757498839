"""The stages of a recipe, in the order in which they can run."""

import math
from collections.abc import Mapping

from pipeline import (
    cluster_labels,
    clustering,
    embed,
    encode,
    evaluate,
    export,
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
from pipeline.stage import Run, Stage
from pipeline.versions import Since


def build(recipe: Recipe, since: Since | None = None) -> list[Stage]:
    """Every stage after its inputs; the same recipe gives the same keys anywhere.

    since: what a refresh takes from the version before; those stages come first.
    """
    since = since or Since()
    seed, num_classes = recipe.seed, recipe.data.num_classes
    stages: list[Stage] = since.stages()

    def add(
        name: str,
        version: int,
        config: Config,
        inputs: Mapping[str, Stage],
        run: Run,
        title: str = "",
        images: tuple[str, ...] = (),
    ) -> Stage:
        stages.append(Stage(name, version, config, inputs, run, title, images))
        return stages[-1]

    data = add("index", 1, index.IndexConfig.of(recipe.data), {}, index.run)
    tests = {}
    if recipe.evaluate is not None:  # before any training: a missing test shard is told at once
        test = DataConfig.model_validate(
            {**recipe.data.model_dump(), "shards": recipe.evaluate.test_shards, "labels": None}
        )
        tests = {"test_index": add("index", 1, index.IndexConfig.of(test), {}, index.run, title="index test")}
    encoded = {}
    if recipe.encode is not None:
        source = encode.EncodeStageConfig.of(recipe.encode)
        wanted = () if recipe.encode.table else ("index",)
        encoded = {"encode": add("encode", 1, source, {"index": data}, encode.run, images=wanted)}
    sources = {"index": data, **(encoded if recipe.split.draw == "typiclust" else {}), **since.split}
    parts = add("split", 1, split.SplitStageConfig.of(seed, recipe.split), sources, split.run)
    if recipe.cluster is not None:
        near = add("neighbours", 1, neighbours.NeighboursConfig(k=recipe.cluster.neighbours), encoded, neighbours.run)
        clusters = clustering.ClusterConfig(seed=seed, num_clusters=num_classes, training=recipe.cluster)
        heads = add("cluster", 1, clusters, {**encoded, "neighbours": near}, clustering.run)
        sources = {**encoded, "cluster": heads}
        labels = add("pseudo_label", 1, cluster_labels.ClusterLabelConfig(), sources, cluster_labels.run)
        labellers = {"neighbours": near, "cluster": heads}
    else:
        assert recipe.ssl is not None
        steps = math.ceil(since.steps_fraction * recipe.ssl.steps) if since.ssl else recipe.ssl.steps
        training = recipe.ssl.model_copy(update={"steps": steps})
        learning = ssl.SslConfig(seed=seed, num_classes=num_classes, training=training)
        model = add("ssl", 1, learning, {"index": data, "split": parts, **since.ssl}, ssl.run, images=("index",))
        sources = {"index": data, "split": parts, "ssl": model}
        predictions = recipe.pseudo_label or pseudo_label.PseudoLabelConfig()
        labels = add("pseudo_label", 2, predictions, sources, pseudo_label.run, images=("index",))
        labellers = {"ssl": model}
    trained = add(
        "proxy",
        3,
        proxy.ProxyConfig(seed=seed, num_classes=num_classes, training=recipe.proxy),
        {"index": data, "pseudo_label": labels},
        proxy.run,
        images=() if recipe.proxy.random_crop else ("index",),
    )
    looked = {}
    if recipe.needs_embeddings:
        sources = {"index": data, "pseudo_label": labels, "proxy": trained}
        looked = {"embed": add("embed", 1, embed.EmbedConfig(), sources, embed.run, images=("index",))}
    scores = add("score", 2, recipe.score, {"pseudo_label": labels, "proxy": trained, **looked}, score.run)
    trusted = add(
        "trust",
        2,
        trust.TrustConfig(seed=seed),
        {"split": parts, "pseudo_label": labels, "proxy": trained, "score": scores},
        trust.run,
    )
    inputs = {
        "index": data,
        **tests,
        **encoded,
        "split": parts,
        **labellers,
        "pseudo_label": labels,
        "proxy": trained,
        **looked,
        "score": scores,
        "trust": trusted,
    }
    selections = {}
    for config in recipe.select:
        name = config.name
        if config.seed is None:
            config = config.model_copy(update={"seed": seed})
        chosen = add(
            "select",
            2,
            config,
            {"score": scores, "split": parts, "trust": trusted, **looked, **since.select.get(name, {})},
            select.run,
            title=f"select {name}",
        )
        exported = {"index": data, "pseudo_label": labels, "score": scores, "select": chosen}
        inputs[f"select:{name}"] = selections[f"select:{name}"] = chosen
        inputs[f"export:{name}"] = add("export", 3, recipe.export, exported, export.run, title=f"export {name}")
    if recipe.evaluate is not None:
        inputs["evaluate"] = add(
            "evaluate",
            1,
            evaluate.EvaluateConfig.of(recipe.evaluate, seed, recipe.data),
            {"index": data, **tests, **selections},
            evaluate.run,
            images=("test_index",) if recipe.evaluate.training.random_crop else ("index", "test_index"),
        )
    add("report", 2, recipe.report, inputs, report.run)
    return stages


def needed(stages: list[Stage], name: str) -> list[Stage]:
    """The stages called `name` and all that they read, in the plan's order; UserError if the recipe has none."""
    wanted = {stage.key for stage in stages if stage.name == name}
    if not wanted:
        raise UserError(f"the recipe has no {name!r} section: add one, or run another command")
    for stage in reversed(stages):
        if stage.key in wanted:
            wanted |= {source.key for source in stage.inputs.values()}
    return [stage for stage in stages if stage.key in wanted]
