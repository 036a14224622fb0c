"""Checks that every pretext task and every encoder must pass, for the tests of plug-ins.

    from selfvox.testing import check_encoder, check_task

    def test_my_task_satisfies_the_contract():
        check_task(MyTask())

    def test_my_encoder_satisfies_the_contract():
        check_encoder(make)

A check that fails raises an AssertionError, which says what is wrong. Each is also a function of
its own, in `TASK_CHECKS` and `ENCODER_CHECKS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from selfvox.pretext import PretextTask
from selfvox.testing.encoder_checks import (
    MakeEncoder,
    a_segmenter_trains_every_weight,
    channels_and_strides_are_true,
    different_images_have_different_embeddings,
    embeddings_have_the_width,
    the_embedding_trains_every_weight,
    the_state_has_every_tensor_once,
    three_channels_go_in,
)
from selfvox.testing.option_checks import (
    a_task_is_frozen_settings,
    bad_options_are_refused_by_name,
    every_option_matters,
    settings_survive_yaml,
)
from selfvox.testing.task_checks import (
    a_cuda_device_gets_the_batch_of_the_cpu,
    every_draw_is_from_the_generator,
    gradients_reach_every_weight,
    images_do_not_depend_on_their_neighbours,
    images_have_the_input_size,
    joins_another_task,
    metrics_are_detached_numbers,
    mixed_precision_makes_the_same_batch,
    panels_show_every_image,
    the_generator_alone_decides,
    the_order_of_the_batch_does_not_matter,
    the_smallest_batch_has_a_loss,
    untrained_answers_are_at_chance,
)

TASK_CHECKS: tuple[Callable[[PretextTask, int], None], ...] = (
    a_task_is_frozen_settings,
    untrained_answers_are_at_chance,
    gradients_reach_every_weight,
    metrics_are_detached_numbers,
    the_generator_alone_decides,
    every_draw_is_from_the_generator,
    images_do_not_depend_on_their_neighbours,
    the_order_of_the_batch_does_not_matter,
    mixed_precision_makes_the_same_batch,
    a_cuda_device_gets_the_batch_of_the_cpu,
    images_have_the_input_size,
    the_smallest_batch_has_a_loss,
    joins_another_task,
    settings_survive_yaml,
    every_option_matters,
    bad_options_are_refused_by_name,
    panels_show_every_image,
)

ENCODER_CHECKS: tuple[Callable[[MakeEncoder, int], None], ...] = (
    channels_and_strides_are_true,
    embeddings_have_the_width,
    different_images_have_different_embeddings,
    a_segmenter_trains_every_weight,
    the_embedding_trains_every_weight,
    the_state_has_every_tensor_once,
    three_channels_go_in,
)


def check_task(task: PretextTask, dimensions: Sequence[int] = (2, 3)) -> None:
    """Check a task against everything that training, previews and joint tasks rely on.

    It takes some seconds. A batch that is made of several parts is checked part by part, so entries
    have one row per sample, image by image; `views` and `scan` have all first views before all
    second ones, and `other` is a row of the batch.

    Args:
        task: with the options to test; each option is varied too.
        dimensions: of the scans that it is for.

    Raises:
        AssertionError: says what the task does wrong.
    """
    for check in TASK_CHECKS:
        for spatial_dims in dimensions:
            check(task, spatial_dims)


def check_encoder(make: MakeEncoder, dimensions: Sequence[int] = (2, 3)) -> None:
    """Check an encoder against everything that training and prediction rely on.

    Args:
        make: makes it from spatial dimensions and channels; an `Encoder`, or a module that returns
            feature maps.
        dimensions: of the images that it is for.

    Raises:
        AssertionError: says what the encoder does wrong.
    """
    for check in ENCODER_CHECKS:
        for spatial_dims in dimensions:
            check(make, spatial_dims)
