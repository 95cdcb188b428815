//! `imgsnap plan`, `part` and `join`

use super::args::{Plan, PlanVerb};
use super::printer::Printer;
use super::{exit, list, output, verify, words};
use imgsnap::base::error::{ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::repo::work::{PlannedImage, PlannedTask, Work, WorkPlan};
use imgsnap::{
    Joined, ParentChoice, PlanJoined, PlanProgress, PlanRequest, PlanRestoreRequest, PlanState,
    Repository, RestoreJoined, SnapshotRequest, TaskDone, VerifyJoined,
};
use serde_json::{Value, json};
use std::process::ExitCode;
use std::time::Instant;

/// Fails for what is of one image only.
pub fn check(verb: &Plan) -> std::result::Result<(), String> {
    if verb.images.len() > 1 && (verb.name.is_some() || verb.label.is_some()) {
        return Err("--name and --label are of one image; plan it by itself".into());
    }
    if verb.source_held.as_ref().is_some_and(|why| why.trim().is_empty()) {
        return Err("--source-held takes a reason".into());
    }
    Ok(())
}

pub fn plan(
    repository: &Repository,
    verb: &Plan,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    match &verb.verb {
        None if verb.verify => {
            let plan = repository.plan_verify(verb.name.as_deref(), verb.part_size, context)?;
            tell_plan(&plan, printer)
        }
        None => match (&verb.restore, &verb.output) {
            (Some(reference), Some(target)) => {
                let request = PlanRestoreRequest::new(reference.clone(), target.clone())
                    .part_size(verb.part_size);
                tell_plan(&repository.plan_restore(&request, context)?, printer)
            }
            _ => make(repository, verb, printer, context),
        },
        Some(PlanVerb::List) => {
            let plans = repository.plans(context)?;
            if printer.is_json() {
                let plans: Vec<Value> = plans.iter().map(progress_json).collect();
                printer.json(&Value::Array(plans))?;
            } else if plans.is_empty() {
                printer.line("no plans")?;
            } else {
                plans.iter().try_for_each(|plan| printer.line(&describe(plan)))?;
            }
            Ok(exit::DONE)
        }
        Some(PlanVerb::Show { plan }) => {
            let plan = repository.plan_progress(plan, context)?;
            if printer.is_json() {
                printer.json(&progress_json(&plan))?;
            } else {
                printer.line(&describe(&plan))?;
                printer.line(&tasks_table(&plan))?;
            }
            Ok(exit::DONE)
        }
        Some(PlanVerb::Drop { plan }) => {
            let id = repository.drop_plan(plan, context)?;
            if printer.is_json() {
                printer.json(&json!({ "plan": id, "dropped": true }))?;
            } else {
                printer.line(&format!("plan {id} is given up"))?;
            }
            Ok(exit::DONE)
        }
    }
}

fn make(
    repository: &Repository,
    verb: &Plan,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let parent = if verb.full { ParentChoice::Full } else { ParentChoice::Incremental };
    let of = |image: &imgsnap::image::ImageUri| {
        SnapshotRequest::new(image.clone())
            .name(verb.name.clone())
            .label(verb.label.clone())
            .parent(parent.clone())
            .format(verb.format)
            .backing_ok(verb.backing_ok)
            .block_size(verb.block_size)
            .part_size(verb.part_size)
            .compression(verb.compression)
    };
    let images: Vec<SnapshotRequest> = verb.images.iter().map(of).collect();
    let request = PlanRequest::new().images(images).source_held(verb.source_held.clone());
    let mut planned = repository.plan(&request, context)?;
    if planned.plan.is_none() && planned.failed.len() == 1 {
        // As any verb fails: the message names the image.
        if let Some((_, error)) = planned.failed.pop() {
            return Err(error);
        }
    }
    if printer.is_json() {
        let failed = planned.failed.iter();
        let failed: Vec<Value> =
            failed.map(|(image, e)| json!({"image": image, "message": words::error(e)})).collect();
        let mut value = planned.plan.as_ref().map_or_else(|| json!({"tasks": []}), plan_json);
        insert(&mut value, "failed", failed.into());
        printer.json(&value)?;
    } else if let Some(plan) = &planned.plan {
        describe_new(plan, printer)?;
    }
    let first = planned.failed.first().map(|(_, error)| exit::code(error.kind()));
    for (image, error) in planned.failed {
        printer.error(&error.at(image));
    }
    Ok(first.unwrap_or(exit::DONE))
}

fn tell_plan(plan: &WorkPlan, printer: &Printer) -> Result<ExitCode> {
    match printer.is_json() {
        true => printer.json(&plan_json(plan))?,
        false => describe_new(plan, printer)?,
    }
    Ok(exit::DONE)
}

fn plan_json(plan: &WorkPlan) -> Value {
    let mut tasks = tasks_of(plan);
    json!({
        "plan": plan.plan,
        "expires": plan.expires.to_string(),
        "tasks": tasks.drain(..).map(|(_, task)| task).collect::<Vec<Value>>(),
    })
}

fn insert(value: &mut Value, key: &str, what: Value) {
    if let Some(object) = value.as_object_mut() {
        object.insert(key.into(), what);
    }
}

fn describe_new(plan: &WorkPlan, printer: &Printer) -> Result<()> {
    let id = plan.plan;
    printer.line(&format!("plan {id}: {}", output::plural(plan.tasks().len() as u64, "task")))?;
    lines_of(plan).iter().try_for_each(|line| printer.line(&format!("  {line}")))?;
    printer.line(&format!("each worker: imgsnap part {id} TASK   at the end: imgsnap join {id}"))
}

/// What is planned: a line for each image.
fn lines_of(plan: &WorkPlan) -> Vec<String> {
    match &plan.work {
        Work::Images(images) => images.iter().map(image_line).collect(),
        Work::Restore(of) => {
            let (bytes, tasks) = (output::bytes(of.image_bytes), of.tasks.len() as u64);
            let target = of.target.as_deref().map(output::shown).unwrap_or_default();
            let tasks = output::plural(tasks, "task");
            vec![format!("{}@{} -> {target}  {bytes} in {tasks}", of.image, of.number)]
        }
        Work::Verify(of) => {
            let stored: u64 = of.tasks.iter().map(|task| task.stored_bytes).sum();
            let files: usize = of.tasks.iter().map(|task| task.files.len()).sum();
            let what = of.image.as_deref().unwrap_or("all images");
            let files = output::plural(files as u64, "file");
            vec![format!("verify {what}: {files}, {} stored", output::bytes(stored))]
        }
        _ => Vec::new(),
    }
}

fn image_line(image: &PlannedImage) -> String {
    let kind = if image.parent.is_none() { "a base" } else { "a delta" };
    let why = match (&image.pinned, &image.held) {
        (Some(pinned), _) => pinned.clone(),
        (None, held) => format!("held: {}", held.as_deref().unwrap_or_default().escape_debug()),
    };
    let (name, number, tasks) = (&image.name, image.number, image.tasks.len() as u64);
    let bytes = output::bytes(image.fingerprint.bytes);
    format!("{name}@{number}  {kind}, {bytes} in {}; {why}", output::plural(tasks, "task"))
}

/// The tasks of a plan for programs, the largest first, with their numbers.
fn tasks_of(plan: &WorkPlan) -> Vec<(u32, Value)> {
    let mut all: Vec<(u32, Value)> = match &plan.work {
        Work::Images(images) => images
            .iter()
            .flat_map(|image| image.tasks.iter().map(move |task| (task.task, (image, task))))
            .map(|(number, (image, task))| (number, task_json(image, task)))
            .collect(),
        Work::Restore(of) => {
            let json = |task: &PlannedTask| {
                let range = range_of(task, of.block_bytes, of.image_bytes);
                let data = task.data_bytes;
                json!({"task": task.task, "image": of.image, "range": range, "data_bytes": data})
            };
            of.tasks.iter().map(|task| (task.task, json(task))).collect()
        }
        Work::Verify(of) => {
            let files = |task: &imgsnap::repo::work::VerifyTask| {
                let name =
                    |of: &imgsnap::repo::work::PlannedFile| format!("{}/{}", of.image, of.file);
                task.files.iter().map(name).collect::<Vec<String>>()
            };
            let json = |task: &imgsnap::repo::work::VerifyTask| {
                let (files, stored) = (files(task), task.stored_bytes);
                json!({"task": task.task, "files": files, "stored_bytes": stored})
            };
            of.tasks.iter().map(|task| (task.task, json(task))).collect()
        }
        _ => Vec::new(),
    };
    all.sort_by_key(|(task, _)| *task);
    all
}

/// What of an image a task is: `OFFSET+BYTES`.
fn range_of(task: &PlannedTask, block_bytes: u32, image_bytes: u64) -> String {
    let offset = task.first_block.saturating_mul(block_bytes.into());
    let end = task.end_block.saturating_mul(block_bytes.into()).min(image_bytes.max(offset));
    format!("{offset}+{}", end - offset)
}

fn task_json(image: &PlannedImage, task: &PlannedTask) -> Value {
    json!({
        "task": task.task,
        "image": image.name,
        "source": image.source.as_ref().map(ToString::to_string),
        "range": range_of(task, image.block_bytes, image.fingerprint.bytes),
        "data_bytes": task.data_bytes,
    })
}

fn state(of: PlanState) -> &'static str {
    match of {
        PlanState::Pending => "pending",
        PlanState::Joined => "joined",
        PlanState::Dropped => "dropped",
        _ => "unknown",
    }
}

fn progress_json(progress: &PlanProgress) -> Value {
    let images: Vec<Value> = progress
        .each()
        .map(|(image, of)| {
            json!({
                "image": image.name,
                "ref": format!("{}@{}", image.name, image.number),
                "id": image.snapshot,
                "state": state(of),
                "done": image.tasks.iter().filter(|t| progress.done.contains(&t.task)).count(),
                "pinned": image.pinned,
                "held": image.held,
            })
        })
        .collect();
    let failures: Vec<Value> = progress
        .failures
        .iter()
        .map(|failure| {
            json!({
                "task": failure.task,
                "host": failure.host,
                "time": failure.time.to_string(),
                "message": failure.message,
            })
        })
        .collect();
    let mut value = plan_json(&progress.plan);
    for task in value.get_mut("tasks").and_then(Value::as_array_mut).into_iter().flatten() {
        let number = task.get("task").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
        insert(task, "done", number.is_some_and(|n| progress.done.contains(&n)).into());
    }
    insert(&mut value, "time", progress.plan.time.to_string().into());
    insert(&mut value, "done", progress.done.len().into());
    insert(&mut value, "failures", failures.into());
    match &progress.plan.work {
        Work::Restore(of) => {
            insert(&mut value, "restore", format!("{}@{}", of.image, of.number).into());
            insert(&mut value, "state", progress.states.first().copied().map(state).into());
        }
        Work::Verify(of) => insert(&mut value, "verify", of.image.clone().into()),
        _ => insert(&mut value, "images", images.into()),
    }
    value
}

fn describe(progress: &PlanProgress) -> String {
    let time = output::time(progress.plan.time);
    let mut text = format!("plan {}  {time}", progress.id());
    let how = |state_of: PlanState, tasks: &[u32]| match state_of {
        PlanState::Pending => {
            let done = tasks.iter().filter(|task| progress.done.contains(task)).count();
            format!("{done} of {} tasks done", tasks.len())
        }
        other => state(other).to_owned(),
    };
    for (image, of) in progress.each() {
        let tasks: Vec<u32> = image.tasks.iter().map(|task| task.task).collect();
        text.push_str(&format!("\n  {}@{}  {}", image.name, image.number, how(of, &tasks)));
    }
    if progress.plan.images().is_empty() {
        let of = progress.states.first().copied().unwrap_or(PlanState::Pending);
        for line in lines_of(&progress.plan) {
            text.push_str(&format!("\n  {line}; {}", how(of, &progress.plan.tasks())));
        }
    }
    for failure in &progress.failures {
        let (task, host) = (failure.task, failure.host.escape_debug());
        let (time, why) = (output::time(failure.time), failure.message.escape_debug());
        text.push_str(&format!("\n  task {task} FAILED on {host}, {time}: {why}"));
    }
    text
}

fn tasks_table(progress: &PlanProgress) -> String {
    let of = |value: &Value, key: &str| value.get(key).cloned().unwrap_or_default();
    let row = |(task, value): (u32, Value)| {
        let bytes = match of(&value, "data_bytes").as_u64() {
            Some(data) => data,
            None => of(&value, "stored_bytes").as_u64().unwrap_or_default(),
        };
        let what = match of(&value, "files").as_array() {
            Some(files) => output::plural(files.len() as u64, "file"),
            None => of(&value, "range").as_str().unwrap_or_default().to_owned(),
        };
        let image = of(&value, "image").as_str().unwrap_or_default().to_owned();
        let done = if progress.done.contains(&task) { "done" } else { "" };
        vec![task.to_string(), image, what, output::bytes(bytes), done.to_owned()]
    };
    let rows: Vec<Vec<String>> = tasks_of(&progress.plan).into_iter().map(row).collect();
    output::table(&[">TASK", "IMAGE", "RANGE", ">DATA", ""], &rows)
}

pub fn part(
    repository: &Repository,
    plan: &str,
    task: u32,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let done = repository.part(plan, task, context)?;
    let before = "was done before".to_owned();
    let (value, line) = match done {
        TaskDone::Part(made) => {
            let stored = output::bytes(made.file_bytes);
            let how = match made.read_bytes {
                None => before,
                Some(read) => format!("{} read, {stored} stored", output::bytes(read)),
            };
            let value = json!({
                "task": task,
                "image": made.name,
                "object": made.object,
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
                    format!("{} sound", output::plural(sound as u64, "file"))
                }
                Some(sound) => format!("{sound} of {all} files sound; join tells what is wrong"),
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
            let target = of.target.as_deref().map(output::shown).unwrap_or_default();
            let bytes_text = output::bytes(bytes);
            let what =
                format!("{name}@{number} -> {target}  {bytes_text}; the image digest checked");
            let value = json!({"state": "joined", "image": name, "number": number, "bytes": bytes});
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
        PlanJoined::Verify(VerifyJoined::Done(verified)) => {
            return verify::report(&verified, false, begun.elapsed().as_secs_f64(), printer);
        }
        PlanJoined::Verify(VerifyJoined::Unfinished(tasks)) => {
            let missing: Vec<u32> = tasks.iter().map(|task| task.task).collect();
            return unfinished_only("verify", &missing, printer);
        }
        _ => return Ok(exit::DONE),
    };
    let mut code = exit::DONE;
    let mut values = Vec::new();
    for (name, joined) in &joined {
        let value = match joined {
            Joined::Committed(snapshot) | Joined::AlreadyThere(snapshot) => {
                if !printer.is_json() {
                    let before = if matches!(joined, Joined::AlreadyThere(_)) {
                        "was joined before"
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
                printer.error(error);
                json!({ "image": name, "state": "failed", "message": words::error(error) })
            }
            _ => json!({ "image": name, "state": "unknown" }),
        };
        values.push(value);
    }
    if printer.is_json() {
        printer.json(&Value::Array(values))?;
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
