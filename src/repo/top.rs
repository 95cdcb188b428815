//! The names of what lies at the top of a repository beside its images (FORMAT.md section 7).

pub(crate) use crate::store::MARKER;
use crate::store::sealed::is_slot;
use uuid::Uuid;

/// The name of the configuration with that number.
pub(crate) fn config_file(number: u64) -> String {
    format!("config.{number:06}")
}

/// The number in the name of a configuration; the first one is 1.
pub(crate) fn config_number(file: &str) -> Option<u64> {
    let number = file.strip_prefix("config.")?.parse().ok()?;
    (number > 0 && config_file(number) == file).then_some(number)
}

/// The name of a plan.
pub(crate) fn plan_file(plan: Uuid) -> String {
    format!("plan.{plan}")
}

/// The id in the name of a plan.
pub(crate) fn plan_id(file: &str) -> Option<Uuid> {
    let plan = Uuid::parse_str(file.strip_prefix("plan.")?).ok()?;
    (plan_file(plan) == file).then_some(plan)
}

/// The name of what became of one attempt at a task.
pub(crate) fn attempt_file(plan: Uuid, task: u32, attempt: Uuid) -> String {
    format!("plan.{plan}.{task}.{attempt}")
}

/// The plan and the task in such a name.
pub(crate) fn attempt_of(file: &str) -> Option<(Uuid, u32)> {
    let mut fields = file.strip_prefix("plan.")?.splitn(3, '.');
    let plan = Uuid::parse_str(fields.next()?).ok()?;
    let task = fields.next()?.parse().ok()?;
    let attempt = Uuid::parse_str(fields.next()?).ok()?;
    (attempt_file(plan, task, attempt) == file).then_some((plan, task))
}

/// The name of a request.
pub(crate) fn request_file(request: Uuid) -> String {
    format!("request.{request}")
}

/// The id in the name of a request.
pub(crate) fn request_id(file: &str) -> Option<Uuid> {
    let request = Uuid::parse_str(file.strip_prefix("request.")?).ok()?;
    (request_file(request) == file).then_some(request)
}

/// A name that was never given before, for an object that is put only to see what a store does.
pub(crate) fn probe_name() -> String {
    format!("probe.{}", Uuid::new_v4())
}

/// True for such a name.
pub(crate) fn is_probe(file: &str) -> bool {
    let id = file.strip_prefix("probe.");
    id.is_some_and(|id| Uuid::parse_str(id).is_ok_and(|parsed| parsed.to_string() == id))
}

/// True for the name of an object at the top, which no image can have.
pub(crate) fn is_of_repository(name: &str) -> bool {
    name == MARKER
        || config_number(name).is_some()
        || is_probe(name)
        || is_slot(name)
        || plan_id(name).is_some()
        || request_id(name).is_some()
        || attempt_of(name).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_canonical_names_are_configurations() {
        for (name, number) in
            [("config.000001", 1), ("config.000042", 42), ("config.1234567", 1_234_567)]
        {
            assert_eq!(config_number(name), Some(number), "{name}");
            assert!(is_of_repository(name), "{name}");
        }
        for name in
            ["config.000000", "config.1", "config.+00001", "config.", "config.000001.tmp", "config"]
        {
            assert_eq!(config_number(name), None, "{name}");
            assert!(!is_of_repository(name), "{name}");
        }
        assert!(is_of_repository("repository.toml"));
        let plan = Uuid::from_u128(7);
        let attempt = attempt_file(plan, 12, Uuid::from_u128(8));
        assert_eq!((attempt_of(&attempt), plan_id(&attempt)), (Some((plan, 12)), None));
        assert!(is_of_repository(&attempt) && is_of_repository(&plan_file(plan)));
        for name in
            [attempt.replace(".12.", ".012."), attempt.replace(".12.", "."), plan_file(plan)]
        {
            assert_eq!(attempt_of(&name), None, "{name}");
        }
    }
}
