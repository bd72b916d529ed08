"""Which of the chosen sites a method can act at."""

EVERYTHING = ".*"


def fitting(method, chosen, unfit, why):
  """{path: site} of the `chosen` where not unfit(site).

  A selection of everything, or the method's own default, leaves unfit sites out. Raises ValueError,
  naming the first and what to select instead, where `sites` asks for one, by its path or by
  another pattern, and where nothing else is left.
  """
  rest = {path: site for path, site in chosen.items() if not unfit(site)}
  if len(rest) == len(chosen) or (rest and method.sites in (EVERYTHING, type(method).sites)):
    return rest
  lost = next(path for path in chosen if path not in rest)
  name, todo = lost.rpartition("/")[2], "leave it out of `sites`"
  if not rest:
    todo = "select other sites"
  elif isinstance(method.sites, str):
    todo = f"leave it out, for example with sites='(?!.*{name}$)({method.sites})'"
  raise ValueError(f"{type(method).__name__}: {lost} is {why}; {todo}.")
