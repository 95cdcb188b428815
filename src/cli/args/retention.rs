//! What can be typed about which snapshots are kept.

use clap::Args as ClapArgs;
use imgsnap::repo::retention::{Count, LabelGlob, Period};

/// Which snapshots are kept.
#[derive(ClapArgs)]
pub struct Keep {
    /// Keep the newest N snapshots
    #[arg(help_heading = "Retention rules")]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub keep_last: Option<Count>,
    /// Keep one snapshot for each of the last N hours
    #[arg(help_heading = "Retention rules")]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub keep_hourly: Option<Count>,
    /// Keep one snapshot for each of the last N days
    #[arg(help_heading = "Retention rules")]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub keep_daily: Option<Count>,
    /// Keep one snapshot for each of the last N weeks
    #[arg(help_heading = "Retention rules")]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub keep_weekly: Option<Count>,
    /// Keep one snapshot for each of the last N months
    #[arg(help_heading = "Retention rules")]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub keep_monthly: Option<Count>,
    /// Keep one snapshot for each of the last N years
    #[arg(help_heading = "Retention rules")]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub keep_yearly: Option<Count>,
    /// Keep all snapshots within this period of the newest one, such as 30d or 1y6mo
    #[arg(help_heading = "Retention rules")]
    #[arg(long, value_name = "PERIOD")]
    pub keep_within: Option<Period>,
    /// Keep all snapshots whose label matches, such as "pre-*"; can be given several times
    #[arg(help_heading = "Retention rules")]
    #[arg(long, value_name = "GLOB")]
    pub keep_label: Vec<LabelGlob>,
}

/// N is a positive number or "unlimited". A rule keeps the newest snapshot of each of the last N periods
/// that have any; a snapshot is kept if any rule keeps it. Without rules, the configured rules apply.
#[derive(ClapArgs)]
pub struct Prune {
    /// The image
    #[arg(required_unless_present = "all")]
    pub name: Option<String>,
    /// Prune all images
    #[arg(long, conflicts_with = "name")]
    pub all: bool,
    #[command(flatten)]
    pub keep: Keep,
    /// Merge files even if that frees little space
    #[arg(long)]
    pub compact: bool,
    /// Dry run: change nothing, only report what would be kept, and why
    #[arg(long)]
    pub dry_run: bool,
}
