"""The texts of desloc_sotu.yaml, for lm-evaluation-harness."""


def messages(**_):
  """Returns the built-in messages that the default data.validation_fraction holds out."""
  import datasets  # It comes with lm-evaluation-harness.

  from desloc_jax.data import is_held_out, read_documents
  from desloc_jax.options.table import OPTIONS

  fraction = OPTIONS['data.validation_fraction'].default
  texts = [document.text for document in read_documents('sotu')]
  texts = [text for text in texts if is_held_out(text, fraction)]
  return {'test': datasets.Dataset.from_dict({'text': texts})}
