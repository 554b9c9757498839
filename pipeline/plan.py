"""The stages of a recipe, in the order in which they can run."""

from collections.abc import Mapping

from pipeline import embed, evaluate, export, index, pixels, proxy, pseudo_label, report, score, select, split, ssl
from pipeline.config import Config
from pipeline.errors import UserError
from pipeline.index import DataConfig
from pipeline.recipe import Recipe
from pipeline.stage import Run, Stage


def build(recipe: Recipe) -> list[Stage]:
    """Every stage after its inputs; the same recipe gives the same keys anywhere."""
    seed, num_classes = recipe.seed, recipe.data.num_classes
    stages: list[Stage] = []

    def add(name: str, version: int, config: Config, inputs: Mapping[str, Stage], run: Run, title: str = "") -> Stage:
        stages.append(Stage(name, version, config, inputs, run, title))
        return stages[-1]

    data = add("index", 1, index.IndexConfig.of(recipe.data), {}, index.run)
    images = add("pixels", 2, pixels.PixelsConfig.of(recipe.data), {"index": data}, pixels.run)
    tests = {}
    if recipe.evaluate is not None:  # before any training: a missing test shard is told at once
        test = DataConfig.model_validate(
            {**recipe.data.model_dump(), "shards": recipe.evaluate.test_shards, "labels": None}
        )
        test_data = add("index", 1, index.IndexConfig.of(test), {}, index.run, title="index test")
        test_config = pixels.PixelsConfig.of(test)
        test_images = add("pixels", 2, test_config, {"index": test_data}, pixels.run, title="pixels test")
        tests = {"test_index": test_data, "test_pixels": test_images}
    parts = add("split", 1, split.SplitStageConfig(seed=seed, settings=recipe.split), {"index": data}, split.run)
    model = add(
        "ssl",
        1,
        ssl.SslConfig(seed=seed, num_classes=num_classes, training=recipe.ssl),
        {"pixels": images, "split": parts},
        ssl.run,
    )
    labels = add(
        "pseudo_label", 1, recipe.pseudo_label, {"pixels": images, "split": parts, "ssl": model}, pseudo_label.run
    )
    trained = add(
        "proxy",
        2,
        proxy.ProxyConfig(seed=seed, num_classes=num_classes, training=recipe.proxy),
        {"pixels": images, "pseudo_label": labels},
        proxy.run,
    )
    looked = {}
    if recipe.needs_embeddings:
        sources = {"pixels": images, "pseudo_label": labels, "proxy": trained}
        looked = {"embed": add("embed", 1, embed.EmbedConfig(), sources, embed.run)}
    scores = add("score", 2, recipe.score, {"pseudo_label": labels, "proxy": trained, **looked}, score.run)
    inputs = {
        "index": data,
        "pixels": images,
        **tests,
        "split": parts,
        "ssl": model,
        "pseudo_label": labels,
        "proxy": trained,
        **looked,
        "score": scores,
    }
    selections = {}
    for config in recipe.select:
        name = config.name
        if config.seed is None:
            config = config.model_copy(update={"seed": seed})
        chosen = add(
            "select", 1, config, {"score": scores, "split": parts, **looked}, select.run, title=f"select {name}"
        )
        exported = {"index": data, "pseudo_label": labels, "score": scores, "select": chosen}
        inputs[f"select:{name}"] = selections[f"select:{name}"] = chosen
        inputs[f"export:{name}"] = add("export", 2, recipe.export, exported, export.run, title=f"export {name}")
    if recipe.evaluate is not None:
        inputs["evaluate"] = add(
            "evaluate",
            1,
            evaluate.EvaluateConfig.of(recipe.evaluate, seed, recipe.data),
            {"index": data, "pixels": images, **tests, **selections},
            evaluate.run,
        )
    add("report", 1, recipe.report, inputs, report.run)
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
