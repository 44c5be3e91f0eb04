"""Chat templates like those of current model families, which differ in roles, tools and content."""

_ALTERNATE = (
    "{% for m in turns %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
_SYSTEM_APART = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
    "{% set turns = messages[1:] %}{% else %}{% set system = '' %}{% set turns = messages %}{% endif %}"
)

LLAMA3 = (
    "{{ bos_token }}"
    + _SYSTEM_APART
    + "<|start_header_id|>system<|end_header_id|>\n\n{% if tools is defined and tools is not none %}"
    "Environment: here\n{% endif %}{{ system | trim }}<|eot_id|>{% for m in turns %}"
    "{% if m.role == 'tool' %}<|start_header_id|>ipython<|end_header_id|>\n\n"
    "{{ m.content | tojson }}<|eot_id|>"
    "{% elif 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call at once') }}"
    "{% endif %}{% set call = m.tool_calls[0].function %}<|start_header_id|>assistant<|end_header_id|>\n\n"
    '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}<|eot_id|>'
    "{% else %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
"""Always has a system turn; tool calls have a syntax of their own, one per turn."""

_GEMMA_TURNS = (
    "{% for m in turns %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ (system + '\n\n') if loop.first and system else '' }}{{ m['content'] | trim }}"
    "<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% endif %}"
    "{% set turns = messages %}{% set system = '' %}" + _ALTERNATE + _GEMMA_TURNS
)
"""No system role; user and model alternate."""

GEMMA3 = "{{ bos_token }}" + _SYSTEM_APART + _ALTERNATE + _GEMMA_TURNS
"""The system text is part of the first user turn, and left out without one."""

MISTRAL = (
    "{{ bos_token }}"
    + _SYSTEM_APART
    + _ALTERNATE
    + "{% for m in turns %}{% if m['role'] == 'user' %}{% if tools and loop.last %}[AVAILABLE_TOOLS] "
    "{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST] {% if loop.last and system %}{{ system }}\n\n"
    "{% endif %}{{ m['content'] }}[/INST]{% elif m.tool_calls %}[TOOL_CALLS] {{ m.tool_calls | tojson }}"
    "{{ eos_token }}{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}"
    "{% else %}{{ raise_exception('users and assistants only') }}{% endif %}{% endfor %}"
)
"""User and assistant alternate; the system text is in the last question; tool calls have their own syntax."""

PHI = (
    "{% for m in messages %}{% if m['role'] in ('system', 'user', 'assistant') %}<|{{ m['role'] }}|>\n"
    "{{ m['content'] }}<|end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
"""Three roles in any order; messages of other roles are silently left out."""

QWEN3 = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}"
    "{{ messages[0].content + '\n\n' }}"
    "{% endif %}<tools>{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}\n</tools>\n"
    "<tool_call>\n(a call)\n</tool_call><|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n"
    "{{ messages[0].content }}<|im_end|>\n{% endif %}{% for m in messages %}"
    "{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% elif m.role == 'assistant' %}<|im_start|>assistant\n"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% for call in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>'
    "{% endfor %}<|im_end|>\n{% elif m.role == 'tool' %}"
    "{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}<|im_start|>user{% endif %}\n"
    "<tool_response>\n{{ m.content }}\n</tool_response>"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}<|im_end|>\n{% endif %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Tools and calls in this package's syntax; results of one turn share a user turn; reasoning is removed."""

IN_PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Template of a vision model, with content as a list of parts."""

TEMPLATES = {
    "llama3": LLAMA3,
    "gemma2": GEMMA2,
    "gemma3": GEMMA3,
    "mistral": MISTRAL,
    "phi": PHI,
    "qwen3": QWEN3,
    "in_parts": IN_PARTS,
}
