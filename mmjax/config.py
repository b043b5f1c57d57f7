"""The config as frozen structs: the single source of its keys, types, ranges, defaults and documentation.

A field whose default is UNSET is decided by a recipe from the look of the data (`mmjax.recipe`); an explicit value
always wins. Struct docstrings and `Meta(description=...)` make `docs/CONFIG.md` and the JSON Schema for editors.
Loading, overrides and error messages live in `mmjax.config_load`.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Share = Annotated[float, Meta(gt=0.0, le=1.0)]
WithinOne = Annotated[float, Meta(gt=0.0, lt=1.0)]
BelowOne = Annotated[float, Meta(ge=0.0, lt=1.0)]
Positive = Annotated[float, Meta(gt=0.0)]
NonNegative = Annotated[float, Meta(ge=0.0)]
Count = Annotated[int, Meta(ge=1, lt=2**31)]
Text = Annotated[str, Meta(min_length=1)]
Pixels = Annotated[int, Meta(ge=8, le=4096)]
Labels = Annotated[tuple[Text, ...], Meta(min_length=2)]
"""The columns of a multilabel target."""

Scaler = Literal["standard", "minmax", "robust"]
MissingStrategy = Literal["mean", "median", "mode", "constant"]
CategoricalEncoding = Literal["embedding", "onehot", "ordinal", "onehot_or_embedding"]
ImageFilter = Annotated[
    Literal["bilinear", "bicubic", "lanczos", "box"] | UnsetType, Meta(description="The antialiased resampling filter.")
]
CropShare = Annotated[
    Share | None,
    Meta(description="crop: the share of the covered square that is kept, in the middle; by default all of it."),
]
ChannelMean = Annotated[
    tuple[Fraction, Fraction, Fraction] | None,
    Meta(description="Of red, green and blue in 0..1, subtracted; by default that of the training images."),
]
ChannelStd = Annotated[
    tuple[Share, Share, Share] | None,
    Meta(description="Of red, green and blue in 0..1, divided by; by default that of the training images."),
]
Policy = Literal["fail", "drop", "report"]
Severity = Literal["ignore", "warn", "fail"]
Loading = Literal["auto", "resident", "streamed"]
Task = Literal["classification", "regression", "multilabel"]
Activation = Literal["relu", "gelu", "silu", "selu", "mish", "tanh"]
ModelName = Literal[
    "mlp",
    "realmlp",
    "realmlp_s",
    "tabm",
    "airbench",
    "airbench_s",
    "resnet",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet18d",
    "resnet34d",
    "resnet50d",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "tf_efficientnet_b0",
    "tf_efficientnet_b1",
    "tf_efficientnet_b2",
    "tf_efficientnet_b3",
    "tf_efficientnet_b4",
]
OptimizerName = Literal["sgd", "adam", "adamw", "lion", "muon"]
ScheduleName = Literal["constant", "cosine", "warmup_cosine", "one_cycle", "step", "coslog4"]
MemberLoop = Literal["vmap", "map", "loop"]
LossName = Literal["cross_entropy", "focal", "bce", "mse", "mae", "huber", "pinball"]

CLASSIFICATION_METRICS = (
    "loss",
    "accuracy",
    "balanced_accuracy",
    "top_3_accuracy",
    "top_5_accuracy",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "precision_micro",
    "recall_micro",
    "f1_micro",
    "precision_weighted",
    "recall_weighted",
    "f1_weighted",
    "precision",
    "recall",
    "f1",
    "roc_auc",
    "pr_auc",
    "log_loss",
    "refined_log_loss",
    "selection_loss",
    "brier",
    "ece",
    "mcc",
)
"""Metrics of a classifier; `precision`, `recall` and `f1` are those of the positive class of a binary target."""

REGRESSION_METRICS = ("loss", "rmse", "mae", "r2", "mape")
"""Metrics of a regressor."""

MULTILABEL_METRICS = (
    "loss",
    "subset_accuracy",
    "hamming_loss",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "precision_micro",
    "recall_micro",
    "f1_micro",
    "roc_auc",
    "pr_auc",
    "log_loss",
    "refined_log_loss",
    "brier",
    "ece",
)
"""Metrics of a model of several labels; those without `micro` and `subset_accuracy` are means over labels."""

METRIC_NAMES = tuple(dict.fromkeys(CLASSIFICATION_METRICS + REGRESSION_METRICS + MULTILABEL_METRICS))
"""Every metric that `monitor` takes after `val_` or `train_`."""


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section: frozen, hashable, closed."""


class Preprocessing(Section, frozen=True, kw_only=True):
    """How numbers, gaps and categories become what the network sees."""

    normalize: Annotated[bool, Meta(description="Scale numeric columns with `scaler`; `false` feeds raw numbers.")] = (
        True
    )
    scaler: Annotated[
        Scaler | UnsetType,
        Meta(description="`standard` (mean, std), `minmax` (0..1) or `robust` (median, quartiles, smooth clip at 3)."),
    ] = UNSET
    numeric_bins: Annotated[
        Annotated[int, Meta(ge=0, le=1024)] | UnsetType,
        Meta(
            description="Numeric columns also enter as piecewise-linear codes over at most so many bins each, which "
            "lets the network see steps and spikes; 0: none."
        ),
    ] = UNSET
    handle_missing: Annotated[
        MissingStrategy | UnsetType,
        Meta(description="What fills a missing number; every numeric column also gets a missing-indicator."),
    ] = UNSET
    fill_value: Annotated[float, Meta(description="The number used when `handle_missing: constant`.")] = 0.0
    categorical_encoding: Annotated[
        CategoricalEncoding | UnsetType,
        Meta(
            description="`embedding` (learnt), `onehot`, or `ordinal` codes; unknown texts have a slot of their own. "
            "`onehot_or_embedding`: columns of at most `onehot_categories` one-hot, scaled as `robust` scales numbers, "
            "with zeros for unknown texts and one column of -1 and 1 for two categories; others embedded."
        ),
    ] = UNSET
    onehot_categories: Annotated[
        Count | UnsetType, Meta(description="Most categories of a column that is one-hot under `onehot_or_embedding`.")
    ] = UNSET


class Inference(Section, frozen=True, kw_only=True):
    """Thresholds used where no schema file says what a column is."""

    identifier_unique_ratio: Annotated[
        Fraction,
        Meta(
            description="A text or whole-number column with at least this share of distinct values, "
            "and no order to learn from, is an identifier."
        ),
    ] = 0.95
    text_mean_words: Annotated[
        Positive, Meta(description="A text column whose values average more words than this is free text.")
    ] = 5.0
    max_categories: Annotated[
        Count, Meta(description="A text column with more distinct values than this is free text.")
    ] = 1000
    max_integer_classes: Annotated[
        Count,
        Meta(description="A whole-number target with at most this many distinct values is classified, not regressed."),
    ] = 20


DEFAULT_MISSING_MARKERS = ("?", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null")


class RowAugmentation(Section, frozen=True, kw_only=True):
    """Random changes of training images; never applied to validation, test or served images."""

    horizontal_flip: Annotated[
        bool | Literal["alternating"],
        Meta(
            description="Mirror left and right with probability one half; `alternating`: half of the images in one "
            "epoch, the other half in the next. `false` where left and right matter."
        ),
    ] = True
    vertical_flip: Annotated[bool, Meta(description="Mirror top and bottom with probability one half.")] = False
    random_resized_crop: Annotated[
        tuple[Share, Share] | None,
        Meta(
            description="[least, most]: cut out a random box that covers such a share of the image, such as "
            "[0.35, 1.0] (photographs: [0.08, 1.0]), and bring it to the size of training."
        ),
    ] = None
    crop_ratio: Annotated[
        tuple[Positive, Positive],
        Meta(description="random_resized_crop: [least, most] of a box's width over its height."),
    ] = (0.75, 4 / 3)
    rotation_range: Annotated[int, Meta(ge=0, le=180, description="Rotate by up to this many degrees either way.")] = 0
    shift: Annotated[Fraction | UnsetType, Meta(description="Pad and crop by up to this share of each side.")] = UNSET
    color: Annotated[Fraction, Meta(description="Strength of random brightness, contrast and saturation.")] = 0.0
    trivial_augment: Annotated[
        bool,
        Meta(
            description="TrivialAugment (wide): one of 14 operations for each image, from shearing to equalizing, of a "
            "random strength. In place of `rotation_range` and `color`."
        ),
    ] = False
    random_erasing: Annotated[
        Fraction, Meta(description="Probability that a box of the image, 2 to 33 % of it, is painted over.")
    ] = 0.0
    normalize: Annotated[
        bool, Meta(description="Standardise each channel with the mean and std of the training images.")
    ] = True


class Augmentation(RowAugmentation, frozen=True, kw_only=True):
    """Random changes of training images; never applied to validation, test or served images."""

    mixup_alpha: Annotated[
        NonNegative,
        Meta(description="Mix each image and its answer with another one's, by parts from Beta(alpha, alpha); 0: no."),
    ] = 0.0
    cutmix_alpha: Annotated[
        NonNegative,
        Meta(
            description="Classification: a box of each image shows another one, and counts for its class; areas from "
            "Beta(alpha, alpha); 0: no. With `mixup_alpha` too, each row takes either."
        ),
    ] = 0.0
    mix_probability: Annotated[
        Fraction, Meta(description="mixup_alpha and cutmix_alpha: share of the rows that are mixed.")
    ] = 1.0


class TableImages(Section, frozen=True, kw_only=True):
    """Columns of a table that name image files, which are learnt from beside the others by one network."""

    columns: Annotated[
        Annotated[tuple[Text, ...], Meta(min_length=1, max_length=16)],
        Meta(description="The columns with paths of images; an empty cell is a missing image. All share one trunk."),
    ]
    folder: Annotated[
        Text | None,
        Meta(
            description="The folder that the paths start from, relative to the working directory; by default that of "
            "the CSV file. No path may lead out of it."
        ),
    ] = None
    image_size: Annotated[
        tuple[Pixels, Pixels] | UnsetType,
        Meta(description="[height, width] in pixels that every image is brought to."),
    ] = UNSET
    resize: Annotated[
        Literal["crop", "stretch", "pad"], Meta(description="How an image of another shape is brought to `image_size`.")
    ] = "crop"
    crop_share: CropShare = None
    filter: ImageFilter = UNSET
    channel_mean: ChannelMean = None
    channel_std: ChannelStd = None
    augmentation: RowAugmentation = RowAugmentation()


class TabularData(Section, frozen=True, kw_only=True):
    """A CSV file (also .csv.gz) with one header row."""

    path: Annotated[Text, Meta(description="The CSV file, relative to the working directory.")]
    target_column: Annotated[
        Text | Labels,
        Meta(
            description="The column to predict; or a list of columns of two values each (0 and 1, no and yes ...), "
            "labels of which any number hold for a row: `task: multilabel`."
        ),
    ]
    schema: Annotated[
        Text | None, Meta(description="A JSON file (JSON Schema vocabulary) that every row must satisfy.")
    ] = None
    task: Annotated[Task | UnsetType, Meta(description="Inferred from the target when absent.")] = UNSET
    positive_class: Annotated[
        Text | None,
        Meta(
            description="The positive class of a binary target, or the text that means yes in every label; by default "
            "the second in order."
        ),
    ] = None
    train_split: Annotated[Fraction, Meta(description="Share of rows to train on.")] = 0.7
    validation_split: Annotated[Fraction, Meta(description="Share of rows to choose by.")] = 0.1
    test_split: Annotated[Fraction, Meta(description="Share of rows to report on.")] = 0.2
    preprocessing: Preprocessing = Preprocessing()
    inference: Inference = Inference()
    images: TableImages | None = None
    id_column: Annotated[str | None, Meta(description="Names the rows in predictions; never a feature.")] = None
    ignore_columns: Annotated[tuple[str, ...], Meta(description="Columns that are left out.")] = ()
    weight_column: Annotated[
        Text | None, Meta(description="Non-negative sample weights, used by loss and metrics.")
    ] = None
    missing_markers: Annotated[
        tuple[Text, ...], Meta(description="Texts that mean missing, besides an empty or blank cell.")
    ] = DEFAULT_MISSING_MARKERS
    delimiter: Annotated[
        str,
        Meta(
            pattern=r"^[\t !#-~]$",
            description="The character between cells.",
            extra={"pattern_means": "one ASCII character other than a double quote or a line break"},
        ),
    ] = ","
    on_invalid: Annotated[
        Policy,
        Meta(
            description="What to do with rows that violate the schema file, have no target or name a file that is no "
            "readable image: `fail`, `drop` them, or `report` and keep those that can still be read. Such rows are "
            "listed in the run's `quarantine.csv`."
        ),
    ] = "fail"


class ImageData(Section, frozen=True, kw_only=True):
    """A folder of class folders, train/val/test folders of those, a CSV of paths and labels, or idx.gz pairs."""

    path: Annotated[Text, Meta(description="The folder or CSV file, relative to the working directory.")]
    image_size: Annotated[
        tuple[Pixels, Pixels] | UnsetType,
        Meta(description="[height, width] in pixels that every image is brought to: for tests, answers and serving."),
    ] = UNSET
    train_size: Annotated[
        tuple[Pixels, Pixels] | None,
        Meta(
            description="[height, width] in pixels to train at, smaller than `image_size`: faster by the square of the "
            "side, and crops look larger than whole images do, which a larger test makes up for (FixRes). Left out: "
            "`image_size`."
        ),
    ] = None
    progressive_resizing: Annotated[
        bool,
        Meta(
            description="train_size: grow from it to `image_size` in steps over the epochs, each a compilation: cheap "
            "epochs first. The last quarter is trained at `image_size`."
        ),
    ] = False
    resize: Annotated[
        Literal["crop", "stretch", "pad"], Meta(description="How an image of another shape is brought to `image_size`.")
    ] = "crop"
    crop_share: CropShare = None
    filter: ImageFilter = UNSET
    channel_mean: ChannelMean = None
    channel_std: ChannelStd = None
    task: Annotated[
        Task | UnsetType, Meta(description="Inferred from the target when absent; class folders are classified.")
    ] = UNSET
    positive_class: Annotated[
        Text | None,
        Meta(
            description="The positive class of a binary target, or the text that means yes in every label; by default "
            "the second in order."
        ),
    ] = None
    image_column: Annotated[
        Text, Meta(description="In a CSV: the column with the path of the image, relative to the CSV file.")
    ] = "image"
    target_column: Annotated[
        Text | Labels,
        Meta(description="In a CSV: the column to predict; or a list of columns of two values each, as for a table."),
    ] = "label"
    train_split: Annotated[Fraction, Meta(description="Share of images to train on.")] = 0.7
    validation_split: Annotated[Fraction, Meta(description="Share of images to choose by.")] = 0.1
    test_split: Annotated[Fraction, Meta(description="Share of images to report on.")] = 0.2
    augmentation: Augmentation = Augmentation()
    id_column: Annotated[
        str | None, Meta(description="In a CSV: names the rows in predictions; by default the path does.")
    ] = None
    ignore_columns: Annotated[tuple[str, ...], Meta(description="In a CSV: columns that are left out.")] = ()
    weight_column: Annotated[Text | None, Meta(description="In a CSV: non-negative sample weights.")] = None
    on_invalid: Annotated[
        Policy,
        Meta(
            description="What to do with files that are no readable image: `fail`, or leave them out (`drop`), also "
            "naming each (`report`). Such files are listed in the run's `quarantine.csv`."
        ),
    ] = "fail"


class Cache(Section, frozen=True, kw_only=True):
    """Encoded rows and decoded images on disk, memory-mapped: what streamed training reads. Its size is printed."""

    path: Annotated[
        Text | None,
        Meta(description="The folder; by default `data` in mmjax's cache folder (`MMJAX_CACHE_DIR`)."),
    ] = None
    max_gib: Annotated[Positive, Meta(description="Refuse to write a cache larger than so many GiB.")] = 100.0


class Data(Section, frozen=True, kw_only=True):
    """What to learn from: a table, or images."""

    tabular: TabularData | None = None
    image: ImageData | None = None
    loading: Annotated[
        Loading,
        Meta(
            description="`resident` keeps the encoded rows in memory, `streamed` reads them from a cache on disk; "
            "`auto` streams what would fill a quarter of the free memory. Both give the same bits."
        ),
    ] = "auto"
    cache: Cache = Cache()


class Audit(Section, frozen=True, kw_only=True):
    """What the look at the data before training does with what it finds: `ignore` it, `warn`, or `fail`."""

    duplicates: Annotated[Severity, Meta(description="Rows or files that are exact copies within one split.")] = "warn"
    overlap: Annotated[Severity, Meta(description="Exact copies, or one group, in two splits.")] = "warn"
    near_duplicates: Annotated[Severity, Meta(description="Images that look alike, by a perceptual hash.")] = "warn"
    conflicts: Annotated[Severity, Meta(description="Copies with different answers.")] = "warn"
    leaks: Annotated[Severity, Meta(description="Columns that give the target away.")] = "warn"
    columns: Annotated[
        Severity, Meta(description="Columns that are constant or nearly so, identify rows, or hold numbers as text.")
    ] = "warn"
    classes: Annotated[
        Severity, Meta(description="Classes that are imbalanced, have few rows, or differ by case or blanks alone.")
    ] = "warn"
    tails: Annotated[Severity, Meta(description="A target of positive numbers with a heavy tail.")] = "warn"
    drift: Annotated[
        Severity, Meta(description="Columns that differ between training and validation or test rows.")
    ] = "warn"


class Split(Section, frozen=True, kw_only=True):
    """How rows are dealt to train, validation and test."""

    strategy: Annotated[
        Literal["random", "stratified", "column", "folders", "group", "group_stratified", "time"] | UnsetType,
        Meta(
            description="`stratified` for classification and labels (by rows with the same labels), and `random` for "
            "regression by default; "
            "`folders` where train/, val/, test/ exist; `group` and `group_stratified` keep rows of one group in one "
            "split; `time` trains on the oldest rows and tests on the newest."
        ),
    ] = UNSET
    column: Annotated[
        Text | None,
        Meta(
            description="With `column`: holds train, validation (or val) and test; with `group` and "
            "`group_stratified`: names the group of a row; neither is a feature. With `time`: a date or a number; it "
            "stays a feature unless it is in `ignore_columns`."
        ),
    ] = None
    folds: Annotated[
        Annotated[int, Meta(ge=0, le=100)] | UnsetType,
        Meta(
            description="Cross-validation: the rows that are not for test are dealt to so many folds, and one model is "
            "trained for each on the rows of the others; all are kept and answer together. 0 or left out: none, but "
            "for 5 of `preset: best`."
        ),
    ] = UNSET


class Architecture(Section, frozen=True, kw_only=True):
    """The shape of the network; a field that the chosen model does not use is refused."""

    input_dim: Annotated[
        Count | None, Meta(description="Number of input columns, checked against the data when given; absent: counted.")
    ] = None
    hidden_layers: Annotated[
        tuple[Count, ...] | UnsetType,
        Meta(description="mlp, realmlp, tabm: units of each hidden layer; none at all makes a linear model."),
    ] = UNSET
    dropout: Annotated[BelowOne | UnsetType, Meta(description="Share of units dropped in training.")] = UNSET
    activation: Annotated[Activation | UnsetType, Meta(description="The non-linearity.")] = UNSET
    normalization: Annotated[
        Literal["none", "batch", "layer"] | UnsetType, Meta(description="mlp: norm before each activation.")
    ] = UNSET
    residual: Annotated[
        bool | UnsetType, Meta(description="mlp: add each block's input to its output where the widths agree.")
    ] = UNSET
    embedding_dim: Annotated[
        Count | UnsetType,
        Meta(description="mlp, realmlp, tabm: size of each categorical embedding; mlp: by cardinality."),
    ] = UNSET
    members: Annotated[
        Annotated[int, Meta(ge=2)] | UnsetType,
        Meta(description="tabm: networks in one, which share weights; their mean answers."),
    ] = UNSET
    mirrored: Annotated[
        bool | UnsetType,
        Meta(description="airbench: answer with the mean of an image and its mirror image, at twice the work."),
    ] = UNSET
    stages: Annotated[
        Annotated[tuple[Count, ...], Meta(min_length=1, max_length=4)] | UnsetType,
        Meta(description="resnet: blocks in each stage."),
    ] = UNSET
    width: Annotated[
        Count | UnsetType,
        Meta(
            description="resnet, airbench_s: channels of the first stage; doubled at each next (airbench: four times)."
        ),
    ] = UNSET
    stem: Annotated[
        Literal["small", "large"] | UnsetType,
        Meta(
            description="resnet*, efficientnet_*: `small` keeps the resolution; `large` is the papers', which quarters "
            "(efficientnet: halves) it. By default small for images under 96 px, unless there is `model.pretrained`."
        ),
    ] = UNSET


class Fusion(Section, frozen=True, kw_only=True):
    """multimodal: how what is seen in images is joined with what the columns say."""

    join: Annotated[
        Literal["concatenate", "gated"] | UnsetType,
        Meta(
            description="`concatenate`: both side by side into one more hidden layer; `gated`: a mixture, whose shares "
            "are learnt from both."
        ),
    ] = UNSET
    pooling: Annotated[
        Literal["mean", "attention"] | UnsetType,
        Meta(description="How several images of a row become one: their mean, or a mean with learnt weights."),
    ] = UNSET
    width: Annotated[Count | UnsetType, Meta(description="Values that either trunk tells, and the join's units.")] = (
        UNSET
    )
    hidden_layers: Annotated[
        tuple[Count, ...] | UnsetType, Meta(description="Units of each hidden layer of the trunk of the columns.")
    ] = UNSET
    dropout: Annotated[
        BelowOne | UnsetType, Meta(description="Share of units dropped in the trunk of the columns and the join.")
    ] = UNSET
    modality_dropout: Annotated[
        BelowOne | UnsetType,
        Meta(
            description="Share of training rows from which either the images or the columns are hidden, so that the "
            "model answers rows without them."
        ),
    ] = UNSET
    own_heads: Annotated[
        tuple[Literal["columns", "images"], ...] | UnsetType,
        Meta(
            description="Trunks that answer by themselves too, each with a loss of its own, so that neither keeps the "
            "other from learning; the mean of their answers and the join's is the answer."
        ),
    ] = UNSET


class Model(Section, frozen=True, kw_only=True):
    """Which network; `type` follows from the data and `name` from `type` when absent."""

    type: Annotated[
        Literal["tabular", "vision", "multimodal"] | UnsetType,
        Meta(description="The modality; `multimodal`: a table with columns of images (`data.tabular.images`)."),
    ] = UNSET
    name: Annotated[
        ModelName | UnsetType, Meta(description="The family and its size; multimodal: of the trunk of the images.")
    ] = UNSET
    pretrained: Annotated[
        Text | None,
        Meta(
            description="A `.safetensors` or `.npz` state dict of torchvision or timm for `name`, to start from, with "
            "the image size, crop, filter, mean and std that belong to it (docs/VISION.md)."
        ),
    ] = None
    architecture: Architecture = Architecture()
    fusion: Fusion = Fusion()


class EarlyStopping(Section, frozen=True, kw_only=True):
    """Stop when `monitor` has not improved for `patience` epochs; the best epoch's weights are kept."""

    enabled: Annotated[
        bool | UnsetType,
        Meta(
            description="Stop before `epochs` are over; by default where there are validation rows, but for `realmlp` "
            "and `realmlp_s`, whose schedule needs all its epochs."
        ),
    ] = UNSET
    patience: Annotated[Count | UnsetType, Meta(description="Epochs without improvement before stopping.")] = UNSET
    monitor: Annotated[
        str | UnsetType,
        Meta(description="`val_X` or `train_X` for any metric X; the direction follows from the metric."),
    ] = UNSET
    min_delta: Annotated[NonNegative, Meta(description="A smaller change is no improvement.")] = 0.0


class Checkpoint(Section, frozen=True, kw_only=True):
    """Training state on disk: the last one, and the best one by `early_stopping.monitor`."""

    enabled: Annotated[bool, Meta(description="Write the last training state and the best weights to disk.")] = True
    save_best: Annotated[
        bool, Meta(description="Use the best epoch's weights at the end; `false` uses the last epoch's.")
    ] = True
    path: Annotated[
        Text | None,
        Meta(description="Folder for checkpoints, in it one for each run; by default `checkpoints` inside the run."),
    ] = None
    every_seconds: Annotated[
        Positive, Meta(description="Save when so many seconds have gone by, also within an epoch.")
    ] = 30.0
    every_epochs: Annotated[Count | UnsetType, Meta(description="Save each so many epochs instead, at their end.")] = (
        UNSET
    )
    keep: Annotated[
        Count, Meta(description="How many of the newest checkpoints stay; each holds the best weights so far too.")
    ] = 2


class ClassWeight(Section, frozen=True, kw_only=True):
    """The weight of one class in the loss; a class that is not listed weighs 1."""

    label: Annotated[str, Meta(description="The class, as written in the data.")]
    weight: Annotated[NonNegative, Meta(description="Its weight in the loss.")]


class Training(Section, frozen=True, kw_only=True):
    """Optimiser, loss, length. An option beside a key that makes it idle is refused."""

    epochs: Annotated[Count | UnsetType, Meta(description="Passes over the training rows.")] = UNSET
    batch_size: Annotated[
        Count | UnsetType, Meta(description="Rows per step; at most the number of training rows.")
    ] = UNSET
    learning_rate: Annotated[Positive | UnsetType, Meta(description="Peak learning rate.")] = UNSET
    optimizer: Annotated[OptimizerName | UnsetType, Meta(description="sgd uses Nesterov momentum.")] = UNSET
    momentum: Annotated[BelowOne, Meta(description="sgd and muon.")] = 0.9
    weight_decay: Annotated[
        NonNegative | UnsetType, Meta(description="Decoupled decay; norms and biases are exempt.")
    ] = UNSET
    adam_b2: Annotated[
        BelowOne | UnsetType, Meta(description="adam and adamw: decay of the average of squared gradients.")
    ] = UNSET
    decay_schedule: Annotated[
        Literal["constant", "flat_cos"] | UnsetType,
        Meta(description="How `weight_decay` moves over the run; `flat_cos`: to 0 over its second half."),
    ] = UNSET
    schedule: Annotated[ScheduleName | UnsetType, Meta(description="How the learning rate moves over the run.")] = UNSET
    warmup_fraction: Annotated[
        WithinOne, Meta(description="warmup_cosine and one_cycle: share of the run spent rising.")
    ] = 0.1
    step_every: Annotated[Share, Meta(description="step: share of the run between two drops.")] = 0.3
    step_factor: Annotated[Share, Meta(description="step: factor of each drop.")] = 0.1
    loss: Annotated[
        LossName | UnsetType,
        Meta(description="By default cross_entropy, bce for labels (which also take focal), or mse for regression."),
    ] = UNSET
    label_smoothing: Annotated[BelowOne | UnsetType, Meta(description="cross_entropy only.")] = UNSET
    calibration: Annotated[
        Literal["temperature", "matrix", "none"] | UnsetType,
        Meta(
            description="`temperature`: fit the temperature of the probabilities on the validation rows, once training "
            "is done; it goes into the bundle. Classification and labels (one for all of them) only. `matrix`: also a "
            "doubt, the share of each answer that is spread evenly over the classes, and a matrix and an offset of "
            "each class, where these help, the matrix on rows held out from its fit; classes only, and the most "
            "probable one may change. With folds: on out-of-fold rows, for each fold's models; their mean, which "
            "is less sure, has a temperature that makes it as sure as they are on training rows."
        ),
    ] = UNSET
    threshold: Annotated[
        Literal["none", "accuracy", "balanced_accuracy", "f1", "mcc"] | WithinOne,
        Meta(
            description="Two classes: the probability from which on a row is called positive: the best for a metric on "
            "the validation rows, after calibration, or a number; `none`: the more probable class. Labels: that of "
            "each, by itself."
        ),
    ] = "none"
    coverage: Annotated[
        WithinOne | None,
        Meta(
            description="Answers also hold a set of classes, or an interval, with the truth in it in this share of "
            "cases: split-conformal, fitted on the validation rows after calibration. Labels: a set with this share of "
            "those that hold for a row in the mean (conformal risk control), over rows for which any does."
        ),
    ] = None
    abstain_below: Annotated[
        WithinOne | None,
        Meta(
            description="Classification: rows whose largest probability is below this are told to be `abstained`; "
            "labels: rows with a label whose yes and no are both less probable."
        ),
    ] = None
    class_weights: Annotated[
        Literal["none", "balanced"] | tuple[ClassWeight, ...],
        Meta(
            description="Weights of the classes in the loss: `none`, `balanced` (inverse frequency), "
            "or a list of {label, weight}; a class that is not listed weighs 1. Of labels it is yes that is weighted, "
            "and `balanced` weighs yes and no of each. Probabilities then are those of reweighted classes: they rank "
            "rows and are for a threshold, but are no frequencies, calibrated or not."
        ),
    ] = "none"
    focal_gamma: Annotated[NonNegative, Meta(description="focal: how strongly easy rows are discounted.")] = 2.0
    huber_delta: Annotated[
        Positive, Meta(description="huber: where it turns linear, in standard deviations of the target.")
    ] = 1.0
    quantiles: Annotated[
        Annotated[tuple[WithinOne, ...], Meta(min_length=1)],
        Meta(
            description="pinball: the quantiles of the target that are learnt, ascending, 0.5 among them, which is the "
            "prediction; the first and the last are the interval. Answers hold them all."
        ),
    ] = (0.05, 0.5, 0.95)
    clamp: Annotated[
        bool | UnsetType,
        Meta(
            description="Regression: keep answers within the range of the training targets. By default `realmlp` does, "
            "as RealMLP-TD; not with pinball."
        ),
    ] = UNSET
    freeze: Annotated[
        Literal["none", "trunk"] | Count,
        Meta(
            description="What of a pretrained network stays as it is, its running statistics too: nothing, the `trunk` "
            "(all but the head), or the stem and so many stages. Columns beside images learn in any case."
        ),
    ] = "none"
    layer_decay: Annotated[
        Share | UnsetType,
        Meta(
            description="Images: each stage learns this much slower than the one after it, the head at full rate, and "
            "so do columns beside images."
        ),
    ] = UNSET
    gradient_clip_norm: Annotated[
        Positive | UnsetType | None, Meta(description="Clip gradients to this global norm; left out: tabm to 1.")
    ] = UNSET
    accumulate_steps: Annotated[Count, Meta(description="Average gradients over so many batches before an update.")] = 1
    ema_decay: Annotated[
        WithinOne | UnsetType | None,
        Meta(
            description="Evaluate and keep an exponential moving average of the weights; left out: `airbench` and "
            "`airbench_s` do where there are images alone."
        ),
    ] = UNSET
    members: Annotated[
        Annotated[int, Meta(ge=1, le=1000)],
        Meta(description="Models that are trained beside each other (of each fold, with folds) and answer together."),
    ] = 1
    seeds: Annotated[
        tuple[Annotated[int, Meta(ge=0, lt=2**31)], ...],
        Meta(
            description="Train one model for each of these seeds on the same split, and tell the mean and spread of "
            "their metrics; the model that is kept is that of the first."
        ),
    ] = ()
    member_loop: Annotated[
        MemberLoop | UnsetType,
        Meta(
            description="How members are computed: `vmap` (all in each step), `map` (one after the other, in one "
            "program) or `loop` (a program each, on all threads). Left out: what a short trial finds fastest; of "
            "images on a CPU `loop`."
        ),
    ] = UNSET
    early_stopping: EarlyStopping = EarlyStopping()
    checkpoint: Checkpoint = Checkpoint()


class Evaluation(Section, frozen=True, kw_only=True):
    """What a trained model is compared with, and what is kept to compare others with it."""

    baselines: Annotated[
        Literal["all", "quick", "none"] | UnsetType,
        Meta(
            description="Simple models on the same split, a second or two: `quick` asks majority or mean and, of "
            "tables, logistic or ridge regression and nearest neighbours; `all` also gradient boosting, where a "
            "library for it is installed (`mmjax[baselines]`)."
        ),
    ] = UNSET
    answer_rows: Annotated[
        int,
        Meta(
            ge=0,
            le=1_000_000,
            description="At most so many test rows whose answers (label, probabilities; names as hashes) go into the "
            "bundle, so that `compare` can tell a difference from noise; 0: none.",
        ),
    ] = 10_000


class Config(Section, frozen=True, kw_only=True):
    """One run of mmjax: what to learn from, which network, how to train it."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$",
            description="Names the run and the model; by default the config file's stem.",
            extra={"pattern_means": "at most 100 of A-Z a-z 0-9 . _ -, the first a letter or digit"},
        ),
    ]
    data: Data
    budget: Annotated[
        Annotated[
            str,
            Meta(
                pattern=r"^[0-9]+(\.[0-9]+)?(s|m|h)$",
                extra={
                    "pattern_means": "a number and s, m or h, such as 90s, 10m or 2h",
                    "units": {"s": "seconds", "m": "minutes", "h": "hours"},
                    "example": "`budget: 90s` in YAML or `--set budget=90s` on the command line",
                },
            ),
        ]
        | None,
        Meta(
            description="How long the run may take, such as 10m (90s, 2h; a number alone is refused; on the command "
            "line `--set budget=10m`): after a timed epoch members, then folds, "
            "then epochs are cut until it fits, and training ends when the time is over, after one epoch at the "
            "earliest; what was cut is told. Reading, compiling and tests take 10 to 20 s of it. A run that is gone "
            "on with has all of it again."
        ),
    ] = None
    preset: Annotated[
        Literal["fast", "default", "best"],
        Meta(
            description="What to decide where the config leaves it open, for tables: `fast` is `realmlp_s` of 32 "
            "epochs (16 above 8,192 rows), `default` is `realmlp`, `best` is `tabm` in 5 folds, which takes ten times "
            "as long. What the config says wins."
        ),
    ] = "default"
    split: Split = Split()
    audit: Audit = Audit()
    model: Model = Model()
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    seed: Annotated[
        int, Meta(ge=0, lt=2**31, description="Decides the split, the initial weights and every shuffle.")
    ] = 0
    device: Annotated[Literal["auto", "cpu", "gpu"], Meta(description="`auto` takes a GPU when there is one.")] = "auto"
    precision: Annotated[
        Literal["float32", "bfloat16"] | UnsetType,
        Meta(
            description="Compute type; parameters stay float32. Left out: bfloat16 for images where the device is fast "
            "at it, else float32."
        ),
    ] = UNSET
    threads: Annotated[Count | None, Meta(description="CPU threads; by default all that this process may use.")] = None
    golden_rows: Annotated[
        int,
        Meta(
            ge=1,
            le=64,
            description="Rows of the data (of test where there is one) kept in the bundle with their answers, to prove "
            "every load right.",
        ),
    ] = 8


def fold_count(config: Config) -> int:
    """Return `split.folds`; 0 where it is left open."""
    return 0 if config.split.folds is UNSET else config.split.folds


def is_csv(path: str) -> bool:
    """Return whether a path is that of a CSV, by its name."""
    return path.lower().endswith((".csv", ".csv.gz"))


def table_images(config: Config) -> TableImages | None:
    """Return the columns of a table that name images; None where there are none."""
    return None if config.data.tabular is None else config.data.tabular.images


def image_settings(config: Config) -> ImageData | TableImages | None:
    """Return the section that says how images are read and changed, whether or not columns stand beside them."""
    return config.data.image or table_images(config)


def target_columns(data: TabularData | ImageData) -> tuple[str, ...]:
    """Return the columns that hold the target: one, or that of each label."""
    return data.target_column if isinstance(data.target_column, tuple) else (data.target_column,)
