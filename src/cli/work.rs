//! `imgsnap plan`, `part` and `join`

use super::args::{Plan, PlanVerb};
use super::printer::Printer;
use super::{exit, list, output, words};
use imgsnap::base::error::{ErrorKind, Result};
use imgsnap::base::events::Context;
use imgsnap::repo::work::{PlannedImage, PlannedTask, WorkPlan};
use imgsnap::{
    Joined, ParentChoice, PlanProgress, PlanRequest, PlanState, Repository, SnapshotRequest,
};
use serde_json::{Value, json};
use std::process::ExitCode;

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
        None => make(repository, verb, printer, context),
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
    let tasks: Vec<Value> = planned.plan.iter().flat_map(tasks_json).collect();
    if printer.is_json() {
        let failed = planned.failed.iter();
        let failed: Vec<Value> =
            failed.map(|(image, e)| json!({"image": image, "message": words::error(e)})).collect();
        let plan = planned.plan.as_ref();
        printer.json(&json!({
            "plan": plan.map(|plan| plan.plan),
            "expires": plan.map(|plan| plan.expires.to_string()),
            "tasks": tasks,
            "failed": failed,
        }))?;
    } else if let Some(plan) = &planned.plan {
        let images = output::plural(plan.images.len() as u64, "image");
        let count = output::plural(tasks.len() as u64, "task");
        printer.line(&format!("plan {}: {count} of {images}", plan.plan))?;
        for image in &plan.images {
            printer.line(&format!("  {}", image_line(image)))?;
        }
        let id = plan.plan;
        printer.line(&format!(
            "each worker: imgsnap part {id} TASK   at the end: imgsnap join {id}"
        ))?;
    }
    let first = planned.failed.first().map(|(_, error)| exit::code(error.kind()));
    for (image, error) in planned.failed {
        printer.error(&error.at(image));
    }
    Ok(first.unwrap_or(exit::DONE))
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

/// The tasks of a plan for programs, the largest first.
fn tasks_json(plan: &WorkPlan) -> Vec<Value> {
    let mut all: Vec<(&PlannedImage, &PlannedTask)> =
        plan.images.iter().flat_map(|image| image.tasks.iter().map(move |t| (image, t))).collect();
    all.sort_by_key(|(_, task)| task.task);
    all.into_iter().map(|(image, task)| task_json(image, task)).collect()
}

fn task_json(image: &PlannedImage, task: &PlannedTask) -> Value {
    let block_bytes = u64::from(image.block_bytes);
    let offset = task.first_block.saturating_mul(block_bytes);
    let end = task.end_block.saturating_mul(block_bytes).min(image.fingerprint.bytes.max(offset));
    json!({
        "task": task.task,
        "image": image.name,
        "source": image.source.as_ref().map(ToString::to_string),
        "range": format!("{offset}+{}", end - offset),
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
            let tasks: Vec<Value> = image
                .tasks
                .iter()
                .map(|task| {
                    let mut value = task_json(image, task);
                    if let Some(object) = value.as_object_mut() {
                        object.insert("done".into(), of.done.contains(&task.task).into());
                    }
                    value
                })
                .collect();
            json!({
                "image": image.name,
                "ref": format!("{}@{}", image.name, image.number),
                "id": image.snapshot,
                "state": state(of.state),
                "done": of.done.len(),
                "tasks": tasks,
                "pinned": image.pinned,
                "held": image.held,
            })
        })
        .collect();
    json!({
        "plan": progress.id(),
        "time": progress.plan.time.to_string(),
        "expires": progress.plan.expires.to_string(),
        "images": images,
    })
}

fn describe(progress: &PlanProgress) -> String {
    let time = output::time(progress.plan.time);
    let mut text = format!("plan {}  {time}", progress.id());
    for (image, of) in progress.each() {
        let (done, all) = (of.done.len(), image.tasks.len());
        let how = match of.state {
            PlanState::Pending => format!("{done} of {all} tasks done"),
            other => state(other).to_owned(),
        };
        text.push_str(&format!("\n  {}@{}  {how}", image.name, image.number));
    }
    text
}

fn tasks_table(progress: &PlanProgress) -> String {
    let mut rows = Vec::new();
    for (image, of) in progress.each() {
        for task in &image.tasks {
            let value = task_json(image, task);
            rows.push((
                task.task,
                vec![
                    task.task.to_string(),
                    image.name.clone(),
                    value.get("range").and_then(Value::as_str).unwrap_or_default().to_owned(),
                    output::bytes(task.data_bytes),
                    if of.done.contains(&task.task) { "done" } else { "" }.to_owned(),
                ],
            ));
        }
    }
    rows.sort_by_key(|(task, _)| *task);
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(_, row)| row).collect();
    output::table(&[">TASK", "IMAGE", "RANGE", ">DATA", ""], &rows)
}

pub fn part(
    repository: &Repository,
    plan: &str,
    task: u32,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let made = repository.part(plan, task, context)?;
    if printer.is_json() {
        printer.json(&json!({
            "task": made.task.task,
            "image": made.name,
            "object": made.object,
            "stored_bytes": made.file_bytes,
            "data_blocks": made.data_blocks,
            "read_bytes": made.read_bytes,
            "made_before": made.read_bytes.is_none(),
        }))?;
        return Ok(exit::DONE);
    }
    let stored = output::bytes(made.file_bytes);
    let how = match made.read_bytes {
        None => "was made before".to_owned(),
        Some(read) => format!("{} read, {stored} stored", output::bytes(read)),
    };
    printer.line(&format!("{} task {}: {how}", made.name, made.task.task))?;
    Ok(exit::DONE)
}

pub fn join(
    repository: &Repository,
    plan: &str,
    image: Option<&str>,
    printer: &Printer,
    context: &Context,
) -> Result<ExitCode> {
    let joined = repository.join(plan, image, context)?;
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
                let told: Vec<String> = numbers.iter().take(8).map(u32::to_string).collect();
                let more = if numbers.len() > told.len() { " and more" } else { "" };
                let count = output::plural(numbers.len() as u64, "task");
                let what = format!("{name}: {count} not done yet: {}{more}", told.join(", "));
                if !printer.is_json() {
                    printer.line(&what)?;
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
