"""Text from a model: token by token it is what reading all at once would give."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from desloc_jax import data, model
from desloc_jax.hub.stored import read_params
from desloc_jax.inference import sample
from desloc_jax.inference.decode import Choice, generate
from tests.stored_models import KINDS, random_model


def first(count, stored, prompt, choice, seed=0, context=48):
  made = generate(read_params(stored), stored.config, prompt, choice, seed, context)
  return list(itertools.islice(made, count))


@pytest.mark.parametrize('kind', ['llama', 'qwen3'])
def test_the_most_likely_tokens_are_those_of_the_whole_text(kind):
  stored = random_model(**KINDS[kind])
  params, prompt = read_params(stored), [5, 9, 11]
  made = first(20, stored, prompt, Choice(0, 1.0, 257))
  tokens = jnp.asarray([prompt + made])
  hidden = model.GPT(stored.config).apply({'params': params}, tokens)
  best = model.logits(params, hidden)[0, :, :257].argmax(-1)
  assert made == best[len(prompt) - 1 : -1].tolist()


def test_when_the_context_is_full_its_newer_half_is_read_again():
  stored, choice = random_model(), Choice(0, 1.0, 257)
  prompt = list(range(12))
  made = first(14, stored, prompt, choice, context=16)
  assert made[:5] == first(5, stored, prompt, choice, context=48)
  # 16 tokens are read when the fifth is drawn: the sixth is drawn from the newer 8.
  assert made[5:9] == first(4, stored, (prompt + made[:5])[-8:], choice, context=48)
  assert first(3, stored, list(range(40)), choice, context=16) == first(
    3, stored, list(range(24, 40)), choice, context=16
  )


def test_seeds_draw_alike_and_the_padding_of_the_vocabulary_is_never_drawn():
  stored, choice = random_model(), Choice(50.0, 1.0, 7)
  one = first(40, stored, [1], choice, seed=3)
  assert one == first(40, stored, [1], choice, seed=3) != first(40, stored, [1], choice, seed=4)
  assert set(one) == set(range(7))


def test_the_nucleus_is_the_fewest_tokens_of_that_share():
  logits = jnp.log(jnp.asarray([0.1, 0.5, 0.15, 0.25]))
  keys = jax.random.split(jax.random.key(0), 2000)
  draw = lambda top_p: jax.vmap(lambda key: Choice(1.0, top_p, 4).draw(logits, key))(keys)
  share = lambda top_p: np.bincount(draw(top_p), minlength=4) / 2000
  np.testing.assert_allclose(share(1.0), [0.1, 0.5, 0.15, 0.25], atol=0.04)
  np.testing.assert_allclose(share(0.7), [0, 2 / 3, 0, 1 / 3], atol=0.04)
  assert share(0.01)[1] == 1


def test_characters_are_shown_whole():
  tokenizer = data.load_tokenizer('bytes')
  text = 'é東🙂!'
  shown = list(sample.pieces(tokenizer.encode(text).tolist(), tokenizer))
  assert shown == ['é', '東', '🙂', '!']
  cut = list(sample.pieces(tokenizer.encode('a東').tolist()[:-1], tokenizer))
  assert cut == ['a', '\N{REPLACEMENT CHARACTER}']


def test_the_command_prints_the_prompt_and_what_follows(seven_steps, capsys):
  argv = [f'--workdir={seven_steps}', '--prompt=the people', '--tokens=9', '--seed=1']
  sample.main(argv)
  out = capsys.readouterr().out
  assert out.startswith('the people') and len(out) > len('the people\n')
  for wrong, expected in (
    ('--top_p=0', '--top_p is 0.0; expected a number in (0, 1].'),
    ('--temperature=nan', '--temperature is nan; expected a number from 0 to 1000000.'),
    ('--tokens=0', '--tokens is 0; expected a whole number >= 1'),
    ('--parameters=means', "--parameters 'means' is unknown. Did you mean 'mean'?"),
  ):
    with pytest.raises(SystemExit):
      sample.main([*argv, wrong])
    assert expected in capsys.readouterr().err
