//! What the histories found, each by itself.

use crate::power_loss::model::look;
use crate::power_loss::verbs::Verb;
use crate::power_loss::world::{BLOCK, World, content, init};
use crate::support::crash_disk::CrashDisk;
use crate::support::power::Survival;

/// The kernel keeps the pages that it could not write, as if they were written: to compare the image with
/// the snapshot is not enough.
#[test]
fn a_rollback_after_one_whose_sync_failed_writes_again_what_was_lost() {
    let world = World::new();
    let disk = CrashDisk::default();
    init(&disk, false).unwrap();
    let mut random = crate::support::Random(5);
    let (first, second) = (content(&mut random, 6 * BLOCK), content(&mut random, 5 * BLOCK));
    disk.put_image(&first);
    world.show(&disk);
    let snapshot = Verb::Snapshot { how: 23, parent: None, label: None };
    snapshot.run(&world, &disk, &look(&disk, None).unwrap()).unwrap();
    disk.put_image(&second);
    let seen = look(&disk, None).unwrap();
    let rollback = Verb::Rollback { number: 1, save: true, prove: false };

    let counting = disk.survivor();
    world.show(&counting);
    rollback.run(&world, &counting, &seen).unwrap();
    let log = counting.log();
    let sync = log.iter().find(|line| line.ends_with(" sync the image")).unwrap();
    let operation = sync.split(' ').next().unwrap().parse().unwrap();

    for loses in [Survival::Nothing, Survival::Any(1), Survival::Any(2), Survival::Everything] {
        let failing = disk.survivor();
        failing.fail_and_lose_at(operation, loses);
        world.show(&failing);
        let error = rollback.run(&world, &failing, &seen).err().unwrap().to_string();
        assert!(
            error.contains("cannot sync") && error.contains("the image is only partly rolled back"),
            "{error}"
        );
        assert!(*failing.image() == first, "it is read as it was written");
        let again = failing.survivor();
        world.show(&again);
        rollback.run(&world, &again, &look(&again, None).unwrap()).unwrap();
        let lost = again.after_power_loss(Survival::Nothing);
        assert!(*lost.image() == first, "{loses:?}: rolled back, and lost");
        assert_eq!(look(&lost, None).unwrap().intent, None);
    }
}

#[test]
fn an_init_that_was_interrupted_leaves_nothing_when_the_next_one_is_done() {
    let counting = CrashDisk::default();
    init(&counting, false).unwrap();
    for operation in 1..=counting.operations() {
        for survival in [Survival::Nothing, Survival::Everything, Survival::Any(operation)] {
            let disk = CrashDisk::default();
            disk.crash_at(operation);
            assert!(init(&disk, false).is_err());
            let disk = disk.after_power_loss(survival);
            if look(&disk, None).unwrap().is_void {
                init(&disk, false).unwrap();
            }
            let disk = disk.after_power_loss(Survival::Nothing);
            let files = ["config.000001", "repository.toml"];
            let there = disk.files().into_iter().filter(|file| !file.starts_with("key."));
            assert_eq!(there.collect::<Vec<_>>(), files, "{operation}, {survival:?}");
        }
    }
}
