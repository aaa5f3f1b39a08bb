"""Every number that `medray plan` goes by and that the data do not give, in one place.

Of nnU-Net (Isensee 2021, 10.1038/s41592-020-01008-z) unless said otherwise: supplementary note 2 and the repository's
default_experiment_planner.py.
"""

from __future__ import annotations

ANISOTROPIC = 3.0
"""An axis is coarse when its spacing is more than this many times the others', with so many times fewer voxels."""
COARSE_PERCENT = 10.0
"""Percentile of a coarse axis's spacings that images are resampled to, instead of their median."""
CROP_FROM = 0.05
"""Share of the voxels that the crop must remove in the median case to be worth its turn; medray's own."""
MASK_FROM = 0.25
"""From this removed share on, statistics of intensities are those of voxels that are not 0."""

THIN = 2.0
"""An axis is neither halved nor convolved along while its voxels are this many times as long as the shortest."""
SMALLEST_EDGE = 4
"""Edge of the deepest feature map."""
START_VOXELS = {3: 256**3, 2: 2048**2}
"""Size of the patch before it is cut to the median case and to the memory."""
FILTERS = 32
MOST_FILTERS = {3: 320, 2: 512}
DATASET_SHARE = 0.05
"""Most of the dataset's voxels in one batch."""
LEAST_BATCH, MOST_BATCH = 2, 64
MEMORY_SHARE = 0.8
"""Of the free memory, that a training may take."""

STEPS_PER_EPOCH, MOST_EPOCHS, LEAST_EPOCHS = 250, 1000, 20
"""A short training has fewer steps between validations, not fewer validations."""
SGD_FROM_STEPS = 10_000
"""nnU-Net's SGD needs a long run; below, AdamW with one cycle (Smith 2018, arXiv:1708.07120) gets further."""

SGD = {"name": "sgd", "lr": 0.01, "momentum": 0.99, "nesterov": True, "weight_decay": 3e-5}
SGD_WHY = "as nnU-Net: the training is long enough"
ADAMW = {"name": "adamw", "lr": 0.002, "weight_decay": 0.01}
ADAMW_WHY = f"nnU-Net's SGD needs a longer training than this, of {SGD_FROM_STEPS} steps or more"
CLIP_NORM = 12.0
ROTATION = {3: 30.0, 2: 180.0}
OBLONG, ROTATION_OBLONG = 1.5, 15.0
"""Pictures whose edges differ by more than this ratio are turned less: corners would be lost."""
FOREGROUND = 0.33
FOREGROUND_WHY = "as nnU-Net: a third of the patches is put on a class other than the background"

MINUTES = {"cpu": 18.0, "cuda": 240.0}
TRAIN_SHARE = 0.8
"""Of the minutes, that go into optimiser steps: the rest reads, validates, evaluates and records."""
LEAST_STEPS = 1500
"""Fewer optimiser steps than this do not train a segmentation: then the batch and the network get smaller. medray's
own: norms are per instance, so a batch of 2 learns as much per patch as a larger one, in more steps."""
RUNGS = ((32, True), (32, False), (24, False), (16, False), (12, False), (8, False))
"""Filters of the first level, and whether batches stay as planned or get down to SMALL_BATCH: from nnU-Net's network to
what a CPU can still train."""
SMALL_BATCH = {3: 2, 2: 8}
SMALLEST_PATCH = {3: 32, 2: 64}
"""A patch is not made smaller than this for the sake of time."""

KEPT_EDGE = 64
"""Classification: images up to this edge are seen whole at their own size, by a ResNet with the small stem of
He 2016 (10.1109/CVPR.2016.90, section 4.2)."""
EDGE_STEP = {2: 32, 3: 16}
"""Classification: larger grids have edges in multiples of this."""
EDGES = {2: (224, 160, 128, 96, 64), 3: (96, 80, 64, 48, 32)}
"""Classification: longest edge of the grid, the first that memory and time allow."""
DEPTHS = (18, 10)
PLAIN = (32, 64, 128)
"""Classification: layers of the ResNets that are tried, and the widths of a network that is quicker than they."""
SURELY = 1.5
"""Classification: a network is not measured if its arithmetic says that it takes this many times too long."""
LEAST_PASSES, MOST_PASSES = 10, 60
"""Classification: times that a training sees every case."""
CASES_PER_STEP = 64
"""Classification: cases in a batch, fewer where memory or the number of cases say so."""
LEAST_STEPS_PER_PASS = 8
"""Classification: batches get smaller before an epoch has fewer steps."""
IMBALANCED = 3.0
"""Classification: from this ratio of the largest class to the smallest on, classes weigh the same in the loss."""
