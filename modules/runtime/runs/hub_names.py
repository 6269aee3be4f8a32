"""Names on the Hugging Face Hub: what can be one, and whether a run could be uploaded under it. Nobody is asked."""


def check_repo_name(name: str | None) -> str | None:
    """What is wrong with a hub name, as a sentence, or None."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    rule = "write 'owner/name' with letters, digits, '-', '_' and '.', for example 'my-account/tiger-beauty'"
    if name is None or name.count("/") != 1 or not all(name.split("/")):
        return f"{name!r} is not a hub name; {rule}"
    try:
        validate_repo_id(name)
    except HFValidationError:
        return f"{name!r} is not a hub name; {rule}"
    return None


def check_push(name: str | None) -> str | None:
    """What would keep a run from being uploaded under a name, as a sentence, or None; a training need not end before it is known."""
    from huggingface_hub import get_token

    problem = check_repo_name(name)
    if problem is None and get_token() is None:
        return "no token for the hub: `hf auth login` or HF_TOKEN gives one with write access"
    return problem
