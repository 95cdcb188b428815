//! Options that name a base in another image.

use super::words::parsed;
use clap::Args as ClapArgs;
use imgsnap::Reference;

/// What a chain begins from, if that is not the image itself.
#[derive(ClapArgs, Clone)]
pub struct Elsewhere {
    /// Start the chain at a snapshot of another image in the repository, such as the template that the
    /// image was made from: only what differs is stored
    #[arg(long, value_name = "REF", value_parser = parsed::<Reference>)]
    #[arg(conflicts_with_all = ["base_image", "parent", "differential", "changed"])]
    pub base_of: Option<Reference>,
    /// Start the chain at the snapshot of another image that has the most in common with this one, if at
    /// least half of the blocks are equal
    #[arg(long)]
    #[arg(conflicts_with_all = ["base_of", "base_image", "parent", "differential", "changed"])]
    pub find_base: bool,
}
