"""The texts of the configs that `mmjax init` writes, with places to fill."""

MEASURED = {
    "classification": "accuracy, ROC-AUC, log-loss ...",
    "regression": "RMSE, MAE, R2 ...",
    "multilabel": "F1, ROC-AUC, Hamming loss ...",
}
"""By task, what is reported on the test rows."""

SHARES = """\
    train_split: 0.7  # {rows} to learn from
    validation_split: 0.1  # {rows} to choose the best epoch by, and to calibrate on
    test_split: 0.2  # {metric}
"""

TABLE_CONFIG = """\
# Made by `mmjax init`. Every key and its options: docs/CONFIG.md. Keys left out are decided when training starts,
# from the look of the data, and printed.
{name}data:
  tabular:
    path: {path}
{delimiter}    schema: {schema}  # what each column is: edit it where the guess is wrong
    target_column: {target}  # {why}
    task: {task}
{images}{shares}    {drop}rows that violate the schema: fail (default), drop or report
    # id_column: {id_column}  # names the rows in predictions
    # ignore_columns: [NAME]

# model:  # an example, as is the next: without them the recipe decides; `mmjax check` shows what
#   name: {network}

# training:
#   epochs: 30

seed: 0  # the same seed gives the same split and the same model
"""

TABLE_NETWORK = "realmlp_s  # faster than realmlp, the default; tabm: slower, often better; or mlp, a plain network"
TABLE_IMAGES = """\
    images:  # one network looks at them, another at the columns; docs/MULTIMODAL.md
      columns: [{columns}]
      augmentation: {{horizontal_flip: true}}  # false where left and right matter, as in text
"""

IMAGE_CONFIG = """\
# Made by `mmjax init`. Every key and its options: docs/CONFIG.md. Keys left out are decided when training starts,
# from the look of the data, and printed.
{name}data:
  image:
    path: {path}  # {what}
{columns}    image_size: [{height}, {width}]  # larger is slower and often better
{shares}    augmentation: {{horizontal_flip: true}}  # false where left and right matter, as in text
    {drop}files that are no readable image: fail (default), drop or report

# model:  # an example, as is the next: without them the recipe decides; `mmjax check` shows what
#   name: resnet18

# training:
#   epochs: 30

seed: 0  # the same seed gives the same split and the same model
"""
