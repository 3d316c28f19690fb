// Every operator, for one device's Runner. A new method is an include and two lines here.
#pragma once

#include "affine.h"
#include "channel_error.h"
#include "dampening.h"
#include "dsq.h"
#include "ewgs.h"
#include "foreach.h"
#include "frozen_lsq.h"
#include "lsq.h"
#include "noise_quant.h"
#include "oscillation.h"
#include "pact.h"
#include "qil.h"
#include "sat.h"
#include "tempered.h"

namespace fastq {

template <const Runner& runner, class Library>
void implement_operators(Library& m) {
  m.impl("affine_forward", TORCH_BOX(&affine_forward<runner>));
  m.impl("affine_backward", TORCH_BOX(&affine_backward<runner>));
  m.impl("channel_error_forward", TORCH_BOX(&channel_error_forward<runner>));
  m.impl("channel_error_backward", TORCH_BOX(&channel_error_backward<runner>));
  m.impl("ewgs_forward", TORCH_BOX(&ewgs_forward<runner>));
  m.impl("ewgs_backward", TORCH_BOX(&ewgs_backward<runner>));
  m.impl("foreach_dampening_forward", TORCH_BOX(&foreach_dampening_forward<runner>));
  m.impl("foreach_dampening_backward", TORCH_BOX(&foreach_dampening_backward<runner>));
  m.impl("foreach_oscillation_step", TORCH_BOX(&foreach_oscillation_step<runner>));
  m.impl("foreach_lsq_forward", TORCH_BOX(&foreach_lsq_forward<runner>));
  m.impl("foreach_lsq_backward", TORCH_BOX(&foreach_lsq_backward<runner>));
  m.impl("dampening_forward", TORCH_BOX(&dampening_forward<runner>));
  m.impl("dampening_backward", TORCH_BOX(&dampening_backward<runner>));
  m.impl("frozen_lsq_forward", TORCH_BOX(&frozen_lsq_forward<runner>));
  m.impl("frozen_lsq_backward", TORCH_BOX(&frozen_lsq_backward<runner>));
  m.impl("lsq_forward", TORCH_BOX(&lsq_forward<runner>));
  m.impl("lsq_backward", TORCH_BOX(&lsq_backward<runner>));
  m.impl("oscillation_step", TORCH_BOX(&oscillation_step<runner>));
  m.impl("pact_forward", TORCH_BOX(&pact_forward<runner>));
  m.impl("pact_backward", TORCH_BOX(&pact_backward<runner>));
  m.impl("qil_forward", TORCH_BOX(&qil_forward<runner>));
  m.impl("qil_backward", TORCH_BOX(&qil_backward<runner>));
  m.impl("dsq_forward", TORCH_BOX(&dsq_forward<runner>));
  m.impl("dsq_backward", TORCH_BOX(&dsq_backward<runner>));
  m.impl("sat_forward", TORCH_BOX(&sat_forward<runner>));
  m.impl("sat_backward", TORCH_BOX(&sat_backward<runner>));
  m.impl("noise_quant_forward", TORCH_BOX(&noise_quant_forward<runner>));
  m.impl("noise_quant_backward", TORCH_BOX(&noise_quant_backward<runner>));
  m.impl("tempered_forward", TORCH_BOX(&tempered_forward<runner>));
  m.impl("tempered_backward", TORCH_BOX(&tempered_backward<runner>));
}

}  // namespace fastq
