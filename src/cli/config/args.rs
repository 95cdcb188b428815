//! What can be typed after `imgsnap config`.

use clap::Subcommand;

#[derive(Subcommand)]
pub enum Config {
    /// Print the configuration
    Show,
    /// Edit the configuration with $VISUAL, $EDITOR or vi
    ///
    /// The saved text is checked. If it is invalid, nothing is changed, and the text is kept in a file whose
    /// name is printed.
    Edit,
    /// Set or remove a configuration key
    ///
    /// For example: prune.keep_daily 7, images."db".prune.keep_label '["pre-*"]', snapshot.track none,
    /// new.block_size 64K.
    Set {
        /// Key, including the tables that contain it
        key: String,
        /// TOML value; anything else is taken as a string
        #[arg(required_unless_present = "unset", allow_hyphen_values = true)]
        value: Option<String>,
        /// Remove the key or table
        #[arg(long, conflicts_with = "value")]
        unset: bool,
    },
}
