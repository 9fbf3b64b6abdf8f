"""What other packages expect of a model: scikit-learn's estimator, wrappers for marginaleffects and maketables.

Nothing of theirs is imported before it is used: ``from fastlmm_core.adapters.sklearn import MixedModelRegressor``,
``from fastlmm_core.adapters.marginaleffects import wrap``. The extra ``adapters`` installs the packages.
"""
