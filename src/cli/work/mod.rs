//! `imgsnap plan`: what is planned, and how far it is. `part` and `join` are in `done`.

mod done;
mod engine;

pub use done::{join, part};
pub use engine::Engine;

use super::args::{Plan, PlanVerb};
use super::page::{Page, Table};
use super::printer::Printer;
use super::{exit, output, snapshot, words};
use imgsnap::base::error::{Error, ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::image::ImageUri;
use imgsnap::repo::work::{PlannedImage, PlannedRestore, PlannedTask, Work, WorkPlan};
use imgsnap::{
    ParentChoice, PlanProgress, PlanRequest, PlanRestoreRequest, PlanState, Repository,
    RestorePlace, SnapshotRequest,
};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Fails for what is of one image only.
pub fn check(verb: &Plan) -> std::result::Result<(), String> {
    if verb.images.len() > 1 && (verb.name.is_some() || verb.label.is_some()) {
        return Err("--name and --label apply to one image only; plan it separately".into());
    }
    if verb.output.is_some() && verb.restore.is_none() {
        return Err("-o requires --restore".into());
    }
    if verb.output.as_ref().is_some_and(|output| output.as_os_str() == "-") {
        return Err("several workers cannot write to stdout; give a file with -o".into());
    }
    if verb.source_held.as_ref().is_some_and(|why| why.trim().is_empty()) {
        return Err("--source-held requires a reason".into());
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
                let place = match ImageUri::parse(target)? {
                    ImageUri::File(path) => RestorePlace::File(path),
                    ImageUri::Remote(url) => RestorePlace::Object(url),
                    other => {
                        let what = format!("several workers cannot write to {other}");
                        return Err(Error::new(ErrorKind::Unsupported, what));
                    }
                };
                let request =
                    PlanRestoreRequest::new(reference.clone(), place).part_size(verb.part_size);
                tell_plan(&repository.plan_restore(&request, context)?, printer)
            }
            _ => make(repository, verb, printer, context),
        },
        Some(PlanVerb::List) => {
            let plans = repository.plans(context)?;
            if printer.is_json() {
                plans.iter().try_for_each(|plan| printer.json(&progress_json(plan)))?;
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
                printer.page(&Page::default().table(tasks_table(&plan)))?;
            }
            Ok(exit::DONE)
        }
        Some(PlanVerb::Drop { plan }) => {
            let id = repository.drop_plan(plan, context)?;
            if printer.is_json() {
                printer.json(&json!({ "plan": id, "dropped": true }))?;
            } else {
                printer.line(&format!("dropped plan {id}"))?;
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
    let of = |image: &ImageUri| {
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
    let images: Vec<SnapshotRequest> =
        snapshot::expanded(&verb.images, context)?.iter().map(of).collect();
    let request = PlanRequest::new()
        .images(images)
        .source_held(verb.source_held.clone())
        .webhdfs(verb.webhdfs.clone());
    let mut planned = repository.plan(&request, context)?;
    let has_unchanged = !planned.unchanged.is_empty();
    if planned.plan.is_none() && !has_unchanged && planned.failed.len() == 1 {
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
        let unchanged = planned.unchanged.iter().map(|(name, number)| {
            json!({"image": name, "ref": format!("{name}@{number}"), "number": number})
        });
        insert(&mut value, "unchanged", unchanged.collect::<Vec<Value>>().into());
        insert(&mut value, "failed", failed.into());
        printer.json(&value)?;
    } else if let Some(plan) = &planned.plan {
        describe_new(plan, printer)?;
    }
    if !printer.is_json() {
        let same = |(name, number): &(String, u64)| format!("{name}@{number}  unchanged: no task");
        planned.unchanged.iter().try_for_each(|one| printer.line(&same(one)))?;
    }
    let first = planned.failed.first().map(|(_, error)| exit::code(error.kind()));
    for (image, error) in planned.failed {
        // The plan says so to programs.
        printer.failure(&words::error(&error.at(image)));
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
    let title = format!("plan {id}  {}", output::plural(plan.tasks().len() as u64, "task"));
    let lines = lines_of(plan).into_iter().map(|line| format!("\n  {line}")).collect::<String>();
    printer.page(&Page::new(title + &lines).rows(&[
        ("workers", format!("imgsnap part {id} TASK")),
        ("then", format!("imgsnap join {id}")),
    ]))
}

/// What is planned: a line for each image.
fn lines_of(plan: &WorkPlan) -> Vec<String> {
    match &plan.work {
        Work::Images(images) => images.iter().map(image_line).collect(),
        Work::Restore(of) => {
            let (bytes, tasks) = (output::bytes(of.image_bytes), of.tasks.len() as u64);
            let target = target_shown(of);
            let tasks = output::plural(tasks, "task");
            vec![format!("{}@{} -> {target}  {bytes} in {tasks}", of.image, of.number)]
        }
        Work::Verify(of) => {
            let stored = of.tasks.iter().map(|task| task.stored_bytes);
            let stored = stored.fold(0, u64::saturating_add);
            let files: usize = of.tasks.iter().map(|task| task.files.len()).sum();
            let what = of.image.as_deref().unwrap_or("all images");
            let files = output::plural(files as u64, "file");
            vec![format!("verify {what}: {files}, {} stored", output::bytes(stored))]
        }
        _ => Vec::new(),
    }
}

/// Where a restore goes, for people.
pub(super) fn target_shown(of: &PlannedRestore) -> String {
    match &of.object {
        Some(object) => object.url.escape_debug().to_string(),
        None => of.target.as_deref().map(output::shown).unwrap_or_default(),
    }
}

/// The same for programs.
pub(super) fn target_json(of: &PlannedRestore) -> Value {
    match &of.object {
        Some(object) => object.url.clone().into(),
        None => of.target.as_deref().map(output::path).into(),
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
        "hosts": image.hosts.iter().find(|(of, _)| *of == task.task).map(|(_, hosts)| hosts),
        "seconds": image.read_rate.map(|rate| task.data_bytes as f64 / rate as f64),
        "memory_bytes": TASK_MEMORY_BYTES,
    })
}

/// What a task takes at the most, whatever its length.
const TASK_MEMORY_BYTES: u64 = 128 << 20;

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
            insert(&mut value, "target", target_json(of));
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

fn tasks_table(progress: &PlanProgress) -> Table {
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
    Table::new(&[">TASK", "IMAGE", "RANGE", ">DATA", ""], &rows).leaving_out(&["DATA", "RANGE"])
}
