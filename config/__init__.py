"""What a deployment decides: settings from the environment, the model catalogue, and providers' keys.

`settings` reads `PROMPTMILL_*`, each of a type in `setting_types`; `catalog/` says which provider answers for which
model, `api_keys` fetches and checks the keys that the catalogue names, `celeryconfig` and `celery_urls` say it all to
Celery, `problems` words what is wrong. Nothing here knows the tasks or the workers.
"""
