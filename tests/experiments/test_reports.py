"""Checks, intervals and tables of reports."""

import importlib
import pathlib
import types

import numpy as np
import pytest

from desloc_jax.errors import UserError
from experiments import plots
from experiments.extensions import beyond
from experiments.report import Check, confidence_interval, markdown, mean_spread


def test_the_best_of_a_seed_is_chosen_by_the_others():
  losses = {'lucky once': [1.0, 5.0, 5.0], 'good': [2.0, 3.0, 4.0]}
  groups = {
    name: [types.SimpleNamespace(seed=seed, loss=loss) for seed, loss in enumerate(values)]
    for name, values in losses.items()
  }
  # Without seed 1 both have a mean of 3.0, and the first is taken.
  assert [result.loss for result in beyond.best_by_others(groups)] == [2.0, 5.0, 4.0]
  assert [result.loss for result in beyond.best_by_others({'one': groups['good'][:1]})] == [2.0]


def test_confidence_intervals_are_those_of_printed_tables():
  # t for 95%: 12.7062 at 1 degree of freedom, 4.30265 at 2, 2.77645 at 4.
  assert confidence_interval([1.0, 3.0]) == pytest.approx((2 - 12.7062, 2 + 12.7062), rel=1e-4)
  assert confidence_interval([1.0, 2.0, 3.0]) == pytest.approx(
    (2 - 4.30265 / 3**0.5, 2 + 4.30265 / 3**0.5), rel=1e-4
  )
  low, high = confidence_interval([2.0, 4.0, 4.0, 4.0, 6.0])  # Deviation sqrt(2).
  assert (low, high) == pytest.approx(
    (4 - 2.77645 * (2 / 5) ** 0.5, 4 + 2.77645 * (2 / 5) ** 0.5), rel=1e-4
  )
  assert confidence_interval([1.0]) == (-np.inf, np.inf)


@pytest.mark.parametrize(
  ('values', 'verdict'),
  [
    ([0.1, 0.2, 0.3], 'holds'),  # Up to 0.45.
    ([0.5, 1.0, 1.5], 'open'),
    ([3.0, 3.1, 3.2], 'does not hold'),
    ([0.1], 'open'),
    ([0.1, np.inf, 0.2], 'does not hold'),
  ],
)
def test_a_check_holds_where_all_of_the_interval_does(values, verdict):
  check = Check('a is at most 1% above b', values, at_most=1, unit='%')
  assert check.verdict == verdict
  assert str(check).endswith(f': {verdict}')


def test_a_check_says_all_that_it_rests_on():
  check = Check('at most 1% above', [0.2, 0.3, 0.4], at_most=1, unit='%', paper='0%')
  assert str(check) == ('at most 1% above: 0.3% (n = 3, 95% CI 0.0516 to 0.548%; paper: 0%): holds')
  assert str(Check('170x', [170.667], 170, 171, 'x', exact=True)) == '170x: 171x (counted): holds'
  assert Check('equal bytes', [1.0, 1.2], 0.9, 1.1, 'x', exact=True).verdict == 'does not hold'


def test_spreads_and_tables_as_text():
  assert mean_spread([1.0, 2.0]) == '1.5000 ± 0.7071'
  assert mean_spread([1.0]) == '1.0000'
  assert mean_spread([1.0, np.inf]) == '1.0000, 1 diverged'
  assert mean_spread([np.inf]) == 'diverged'
  assert markdown([('a|b', 'c'), ('1', '2')]) == '| a\\|b | c |\n|---|---:|\n| 1 | 2 |'


@pytest.mark.parametrize('count', [1, 3, 4, 5, 7])
def test_there_are_as_many_panels_as_asked_for(count):
  figure, axes = plots.panels(count, 'title')
  assert len(axes) == len(figure.axes) == count


@pytest.mark.parametrize(
  ('module', 'argument'),
  [('alarms', '--steps=700'), ('survivors', '--steps=100'), ('survivors', '--seed=2')],
)
def test_a_table_of_the_repository_is_not_replaced_by_another_measurement(
  module, argument, tmp_path
):
  parse = importlib.import_module(f'experiments.systems.{module}').parse
  with pytest.raises(UserError, match=f'{argument} would replace .*{module}.csv'):
    parse([argument])
  assert pathlib.Path(parse([argument, f'--results={tmp_path}']).results) == tmp_path
