//! `imgsnap part` and `imgsnap join`

use super::super::printer::Printer;
use super::super::{exit, list, output, verify, words};
use super::engine::Engine;
use super::{target_json, target_shown};
use imgsnap::base::error::{ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::repo::work::PlannedImage;
use imgsnap::{
    Joined, PlanJoined, PlanProgress, PlanState, Repository, RestoreJoined, TaskDone, VerifyJoined,
};
use serde_json::json;
use std::process::ExitCode;
use std::time::Instant;

pub fn part(
    open: &impl Fn() -> Result<Repository>,
    (plan, task): (&str, u32),
    engine: Option<&Engine>,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let repository = open()?;
    match repository.part(plan, task, context) {
        Ok(done) => tell_part(done, task, engine, printer),
        Err(e) if is_hopeless(&repository, (plan, task), e.kind(), context) => {
            printer.error_with(&e, exit::HOPELESS);
            Ok(ExitCode::from(exit::HOPELESS))
        }
        Err(e) => Err(e),
    }
}

/// True for what another try would meet as well: the plan is over, or what it is of is not what was planned.
fn is_hopeless(
    repository: &Repository,
    (plan, task): (&str, u32),
    kind: ErrorKind,
    context: &Context,
) -> bool {
    match kind {
        ErrorKind::Mismatch | ErrorKind::InvalidInput => true,
        // Or there is no image here, which another host may see.
        ErrorKind::NotFound => match repository.plan_progress(plan, context) {
            Ok(progress) => !is_pending(&progress, task),
            Err(e) => e.kind() == ErrorKind::NotFound,
        },
        _ => false,
    }
}

fn is_pending(progress: &PlanProgress, task: u32) -> bool {
    let has = |of: &PlannedImage| of.tasks.iter().any(|planned| planned.task == task);
    let image = progress.each().find(|(image, _)| has(image)).map(|(_, state)| state);
    let state = image.or_else(|| progress.states.first().copied());
    progress.plan.tasks().contains(&task) && state == Some(PlanState::Pending)
}

fn tell_part(
    done: TaskDone,
    task: u32,
    engine: Option<&Engine>,
    printer: &Printer,
) -> Result<ExitCode> {
    let before = "already done".to_owned();
    let (value, line) = match done {
        TaskDone::Part(made) => {
            let stored = output::bytes(made.file_bytes);
            let how = match made.read_bytes {
                None => before,
                Some(read) => format!("{} read, {stored} stored", output::bytes(read)),
            };
            if let Some(engine) = engine {
                engine.count(&[
                    ("bytes read", made.read_bytes.unwrap_or(0)),
                    ("bytes changed", made.changed_bytes),
                    ("bytes stored", made.file_bytes),
                ]);
            }
            let value = json!({
                "task": task,
                "image": made.name,
                "object": made.object,
                "digest": data_encoding::HEXLOWER.encode(&made.footer_digest.0),
                "changed_bytes": made.changed_bytes,
                "stored_bytes": made.file_bytes,
                "data_blocks": made.data_blocks,
                "read_bytes": made.read_bytes,
                "made_before": made.read_bytes.is_none(),
            });
            (value, format!("{} task {task}: {how}", made.name))
        }
        TaskDone::Range(range) => {
            let data = range.data_bytes;
            let how = data.map_or(before, |data| format!("{} of data", output::bytes(data)));
            let is_before = data.is_none();
            let value = json!({
                "task": task, "image": range.name, "data_bytes": data, "made_before": is_before,
            });
            (value, format!("{} task {task}: {how}", range.name))
        }
        TaskDone::Files(files) => {
            let (all, sound) = (files.task.files.len(), files.sound);
            let how = match sound {
                None => before,
                Some(sound) if sound == all => {
                    format!("{} intact", output::plural(sound as u64, "file"))
                }
                Some(sound) => format!("{sound} of {all} files intact; join reports what is wrong"),
            };
            let is_before = sound.is_none();
            let value =
                json!({"task": task, "files": all, "sound": sound, "made_before": is_before});
            (value, format!("task {task}: {how}"))
        }
        _ => (json!({ "task": task }), format!("task {task}: done")),
    };
    match printer.is_json() {
        true => printer.json(&value)?,
        false => printer.line(&line)?,
    }
    Ok(exit::DONE)
}

pub fn join(
    repository: &Repository,
    plan: &str,
    image: Option<&str>,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let begun = Instant::now();
    let joined = match repository.join(plan, image, context)? {
        PlanJoined::Snapshots(joined) => joined,
        PlanJoined::Restore(of, RestoreJoined::Done) => {
            let (name, number, bytes) = (&of.image, of.number, of.image_bytes);
            let target = target_shown(&of);
            let bytes_text = output::bytes(bytes);
            let what = format!("{name}@{number} -> {target}  {bytes_text}; image digest verified");
            let value = json!({
                "state": "joined",
                "image": name,
                "number": number,
                "bytes": bytes,
                "target": target_json(&of),
            });
            match printer.is_json() {
                true => printer.json(&value)?,
                false => printer.line(&what)?,
            }
            return Ok(exit::DONE);
        }
        PlanJoined::Restore(of, RestoreJoined::Unfinished(tasks)) => {
            let missing: Vec<u32> = tasks.iter().map(|task| task.task).collect();
            return unfinished_only(&of.image, &missing, printer);
        }
        PlanJoined::Verify(VerifyJoined::Done(verified, since)) => {
            if !printer.is_json() {
                let since = output::time(since);
                printer
                    .line(&format!("what workers have verified since {since} is not read again"))?;
            }

            return verify::report(&verified, false, begun.elapsed().as_secs_f64(), printer);
        }
        PlanJoined::Verify(VerifyJoined::Unfinished(tasks)) => {
            let missing: Vec<u32> = tasks.iter().map(|task| task.task).collect();
            return unfinished_only("verify", &missing, printer);
        }
        _ => return Ok(exit::DONE),
    };
    let mut code = exit::DONE;
    for (name, joined) in &joined {
        let value = match joined {
            Joined::Committed(snapshot) | Joined::AlreadyThere(snapshot) => {
                if !printer.is_json() {
                    let before = if matches!(joined, Joined::AlreadyThere(_)) {
                        "already joined"
                    } else {
                        "joined"
                    };
                    let stored = output::bytes(snapshot.file_bytes);
                    let parts = output::plural(snapshot.parts.len() as u64, "part");
                    let number = snapshot.number;
                    printer
                        .line(&format!("{name}@{number}  {before}: {parts}, {stored} stored"))?;
                }
                let snapshot = list::snapshot_json(name, snapshot, None);
                json!({ "image": name, "state": "joined", "snapshot": snapshot })
            }
            Joined::Unfinished(tasks) => {
                code = exit::FAILED;
                let numbers: Vec<u32> = tasks.iter().map(|task| task.task).collect();
                if !printer.is_json() {
                    printer.line(&unfinished(name, &numbers))?;
                }
                json!({ "image": name, "state": "unfinished", "missing": numbers })
            }
            Joined::Failed(error) => {
                code = exit::code(error.kind());
                printer.failure(&words::error(error));
                json!({ "image": name, "state": "failed", "message": words::error(error) })
            }
            _ => json!({ "image": name, "state": "unknown" }),
        };
        if printer.is_json() {
            printer.json(&value)?;
        }
    }
    if joined.is_empty() {
        let what =
            format!("the plan has no image \"{}\"", image.unwrap_or_default().escape_debug());
        return Err(imgsnap::Error::new(ErrorKind::NotFound, what));
    }
    Ok(code)
}

fn unfinished(what: &str, tasks: &[u32]) -> String {
    let told: Vec<String> = tasks.iter().take(8).map(u32::to_string).collect();
    let more = if tasks.len() > told.len() { " and more" } else { "" };
    let count = output::plural(tasks.len() as u64, "task");
    format!("{what}: {count} not done yet: {}{more}", told.join(", "))
}

fn unfinished_only(what: &str, tasks: &[u32], printer: &Printer) -> Result<ExitCode> {
    match printer.is_json() {
        true => printer.json(&json!({"state": "unfinished", "missing": tasks}))?,
        false => printer.line(&unfinished(what, tasks))?,
    }
    Ok(exit::FAILED)
}
