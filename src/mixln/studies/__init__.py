"""Studies: what takes several training runs."""

from mixln.studies.compare import Job, compare, describe_machine, plan_jobs, read_result

__all__ = ["Job", "compare", "describe_machine", "plan_jobs", "read_result"]
