%%% Calls of every exported function with terms of every type, for a VM of their own: they may end
%%% it. Each call is made in a process of its own; what it was and which terms it got follows from a
%%% seed and a number.
-module(mesh_fuzz).

-export([functions/0, start/1, round/3, starts/3, figures/0, atoms/0]).
-export([begin_dial/2, kill_caller/0]).

-define(POOL, macula_gateway_mesh).
-define(NIF, macula_gateway_mesh_nif).
-define(TLS, macula_gateway_mesh_tls).
%% Calls under way at once, and calls of one round: with what they have closed, all ends.
-define(AT_ONCE, 8).
-define(CALLS, 64).
%% Characters of a call that went wrong, and of what came of it.
-define(SHOWN, 300).
%% Who waits longer than this is left waiting until the round ends. Of those, who may wait and each
%% second one of the others die then, mid-call; the rest have to return.
-define(PATIENCE_MS, 10).
%% Longer than what has an end takes on a busy machine, and what no call of a round waits for.
-define(RETURN_MS, 15_000).
-define(LONG_MS, 60_000).
%% For what is to be there before a round: only a failing test waits so long.
-define(SET_UP_MS, 20_000).

%% Every exported function but the callbacks of gen_server, which get what is sent to the server,
%% and what each argument is for. What does not return a value says so by `badarg' or
%% `function_clause'.
functions() ->
    [
        {?POOL, child_spec, [configuration]},
        {?POOL, get_connection_info, [server, node_id]},
        {?POOL, get_or_create_connection, [server, node_id, address]},
        {?POOL, get_stats, [server]},
        {?POOL, list_connections, [server]},
        {?POOL, pool_size, [server]},
        {?POOL, remove_connection, [server, node_id]},
        {?POOL, send, [server, node_id, address, data, timeout]},
        {?POOL, send_async, [server, node_id, address, data]},
        {?POOL, set_max_connections, [server, number]},
        {?POOL, start_link, [configuration]},
        {?POOL, stop, [nobody]},
        {macula_quic, accept, [listener, timeout]},
        {macula_quic, accept_stream, [connection, timeout]},
        {macula_quic, async_accept, [listener, any]},
        {macula_quic, async_accept_stream, [connection, any]},
        {macula_quic, async_send, [stream, data]},
        {macula_quic, async_shutdown_connection, [connection, number, number]},
        {macula_quic, async_shutdown_stream, [stream, number, number]},
        {macula_quic, close, [handle]},
        {macula_quic, close_connection, [connection]},
        {macula_quic, close_listener, [listener]},
        {macula_quic, close_stream, [stream]},
        {macula_quic, connect, [host, port, options, timeout]},
        {macula_quic, controlling_process, [handle, process]},
        {macula_quic, getstat, [connection, keys]},
        {macula_quic, handshake, [connection]},
        {macula_quic, listen, [place, options]},
        {macula_quic, listener_stats, [listener]},
        {macula_quic, open_stream, [connection]},
        {macula_quic, peername, [handle]},
        {macula_quic, recv, [stream, timeout]},
        {macula_quic, reload_certificates, [listener]},
        {macula_quic, send, [stream, data]},
        {macula_quic, setopt, [stream, option, mode]},
        {macula_quic, sockname, [handle]},
        {?TLS, dialling, [options]},
        {?TLS, pool, [configuration]},
        {?NIF, connection_accept_stream, [connection, number, any]},
        {?NIF, connection_async_accept_stream, [connection]},
        {?NIF, connection_cancel_accept, [connection, number]},
        {?NIF, connection_open_stream, [connection, any]},
        {?NIF, connection_shutdown, [connection, number]},
        {?NIF, connection_traffic, [connection]},
        {?NIF, handle_close, [handle]},
        {?NIF, handle_close_dirty, [handle]},
        {?NIF, handle_give, [handle, process]},
        {?NIF, handle_peername, [handle]},
        {?NIF, handle_peername_dirty, [handle]},
        {?NIF, handle_sockname, [handle]},
        {?NIF, handle_sockname_dirty, [handle]},
        {?NIF, listener_accept, [listener, number, any]},
        {?NIF, listener_async_accept, [listener]},
        {?NIF, listener_cancel_accept, [listener, number]},
        {?NIF, listener_reload, [listener]},
        {?NIF, listener_stats, [listener]},
        {?NIF, pool_checkout, [pool, node_id]},
        {?NIF, pool_close, [pool, any]},
        {?NIF, pool_connect, [pool, node_id, address, any]},
        {?NIF, pool_deliver, [pool, node_id, address, data, number, any]},
        {?NIF, pool_info, [pool, node_id, number]},
        {?NIF, pool_list, [pool, number]},
        {?NIF, pool_open, [configuration]},
        {?NIF, pool_remove, [pool, node_id]},
        {?NIF, pool_send, [pool, node_id, address, data]},
        {?NIF, pool_set_limit, [pool, number]},
        {?NIF, pool_size, [pool]},
        {?NIF, pool_stats, [pool]},
        {?NIF, quic_connect, [address, options, number, any]},
        {?NIF, quic_listen, [place, options]},
        {?NIF, stream_async_send, [stream, data]},
        {?NIF, stream_cancel_receive, [stream, number]},
        {?NIF, stream_give, [stream, process]},
        {?NIF, stream_look_again, [stream]},
        {?NIF, stream_pause, [stream, process]},
        {?NIF, stream_receive, [stream, number, any, mode]},
        {?NIF, stream_send, [stream, data]},
        {?NIF, stream_send_wait, [stream, data, any]},
        {?NIF, stream_set_active, [stream, mode]},
        {?NIF, stream_set_packet, [stream, mode]},
        {?NIF, stream_shutdown, [stream, number, number]}
    ].

%% What the server itself is sent.
messages() ->
    [
        {gen_server, call, [the_server, request, {exactly, 50}]},
        {gen_server, cast, [the_server, request]},
        {erlang, send, [the_server, request]}
    ].

%%% In the other VM

%% `Files': certificate and key of listeners.
start({CertFile, KeyFile}) ->
    %% Refused options are warned of, and that is not what is tested here.
    ok = logger:set_primary_config(level, none),
    persistent_term:put(?MODULE, [{certfile, CertFile}, {keyfile, KeyFile}]),
    ok = start_server(),
    {error, _} = macula_quic:connect({127, 0, 0, 1}, 1, [], 1),
    ok.

%% So that the sockets of outgoing connections are there: this one's, and above that of connect/4.
start_server() ->
    ok = mesh_vm:start_pool(#{linger_ms => 20, connect_timeout_ms => 300}),
    {error, _} = ?POOL:get_or_create_connection(?POOL, <<1:256>>, {{127, 0, 0, 1}, 1}),
    ok.

%% Makes the calls of one round, and returns those that went wrong.
round(Seed, Round, Among) ->
    Before = whereis(?POOL),
    {Calls, Monitor} = spawn_monitor(fun() -> exit({wrong, calls(Seed, Round, Among)}) end),
    receive
        {'DOWN', Monitor, process, Calls, {wrong, Wrong}} -> Wrong ++ server(Before);
        {'DOWN', Monitor, process, Calls, Reason} -> [{round_failed, Reason}]
    end.

%% Starts `Count' servers with options of every kind, one after the other, in the place of ours:
%% where one is registered, options are not looked at. How many have started, and what went wrong.
starts(Seed, First, Count) ->
    ok = mesh_vm:stop_pool(),
    {Starts, Monitor} = spawn_monitor(fun() -> exit({started, started(Seed, First, Count)}) end),
    receive
        {'DOWN', Monitor, process, Starts, {started, Outcomes}} ->
            ok = start_server(),
            {length([ok || started <- Outcomes]), [Wrong || {_, _, _} = Wrong <- Outcomes]};
        {'DOWN', Monitor, process, Starts, Reason} ->
            {0, [{starts_failed, Reason}]}
    end.

started(Seed, First, Count) ->
    _ = process_flag(trap_exit, true),
    Things = things(),
    Numbers = lists:seq(First, First + Count - 1),
    Outcomes = [start_server(Seed, -Number, Things) || Number <- Numbers],
    lists:foreach(fun(Thing) -> exit(Thing, kill) end, maps:get(process, Things)),
    Outcomes.

%% A server that has started is used once, and stopped.
start_server(Seed, Number, #{port := [Port]} = Things) ->
    ok = mesh_terms:seed(Seed, Number),
    Options = fitting(configuration, Things),
    Outcome = made({?POOL, start_link, [Options]}),
    case Outcome of
        {returned, {ok, Pid}} ->
            Dial = [Pid, <<1:256>>, {{127, 0, 0, 1}, Port}],
            Dialled = made({?POOL, get_or_create_connection, Dial}),
            ok = ?POOL:stop(Pid),
            checked({?POOL, get_or_create_connection, 3}, {Number, Options}, Dialled, started);
        _ ->
            checked({?POOL, start_link, 1}, {Number, Options}, Outcome, refused)
    end.

checked(Function, {Number, Options}, Outcome, Right) ->
    case is_right(Function, Outcome) of
        true -> Right;
        false -> {Number, shown({Function, Options}), shown(Outcome)}
    end.

%% What must be as it was once everything has ended. Each socket has a task.
figures() ->
    lists:foreach(fun erlang:garbage_collect/1, processes()),
    {ok, Stats} = ?POOL:get_stats(?POOL),
    Ours = maps:with([size, dialing, tasks, runtime_tasks, panics], Stats),
    Ours#{
        processes => erlang:system_info(process_count),
        ports => erlang:system_info(port_count)
    }.

atoms() -> erlang:system_info(atom_count).

%% A dial that only its caller's death can end in time.
begin_dial(Port, Ms) ->
    Caller = spawn(fun() -> macula_quic:connect({127, 0, 0, 1}, Port, [{verify, none}], Ms) end),
    application:set_env(?MODULE, caller, Caller).

kill_caller() ->
    {ok, Caller} = application:get_env(?MODULE, caller),
    true = exit(Caller, kill),
    ok.

server(Before) ->
    case whereis(?POOL) of
        Before when is_pid(Before) -> [];
        Other -> [{the_server_was, Before, and_is, Other}]
    end.

calls(Seed, Round, Among) ->
    _ = process_flag(trap_exit, true),
    Things = things(),
    Numbers = lists:seq(Round * ?CALLS, (Round + 1) * ?CALLS - 1),
    Wrong = waves(Numbers, fun(Number) -> start_call(Seed, Number, Among, Things) end),
    lists:foreach(fun(Thing) -> exit(Thing, kill) end, maps:get(process, Things)),
    Wrong.

waves([], _Start) ->
    [];
waves(Numbers, Start) ->
    {Now, Later} = lists:split(min(?AT_ONCE, length(Numbers)), Numbers),
    Calls = [Start(Number) || Number <- Now],
    Deadline = erlang:monotonic_time(millisecond) + ?PATIENCE_MS,
    Outcomes = [{Call, outcome(Call, Deadline)} || Call <- Calls],
    Rest = waves(Later, Start),
    Late = [last_outcome(Call) || {Call, waits} <- Outcomes],
    lists:append([Wrong || {_, Wrong} <- Outcomes, Wrong =/= waits] ++ Late ++ [Rest]).

last_outcome({Pid, _, {Number, _, MayWait}}) when MayWait; Number rem 2 =:= 0 ->
    exit(Pid, kill),
    [];
last_outcome({Pid, _, {Number, Call, _}} = Late) ->
    Outcome = outcome(Late, erlang:monotonic_time(millisecond) + ?RETURN_MS),
    exit(Pid, kill),
    case Outcome of
        waits -> [{Number, shown(Call), never_returned}];
        Wrong -> Wrong
    end.

start_call(Seed, Number, Among, Things) ->
    ok = mesh_terms:seed(Seed, Number),
    {Module, Function, Kinds} = mesh_terms:pick(Among ++ messages()),
    Arguments = [argument(Kind, Things) || Kind <- Kinds],
    Call = {Module, Function, Arguments},
    {Pid, Monitor} = spawn_monitor(fun() -> exit({outcome, made(Call)}) end),
    {Pid, Monitor, {Number, Call, may_wait(Call, Kinds)}}.

%% Whether a call may wait for what may never come: room, credit, a time that is far off,
%% or the answer of a process that is no server.
may_wait({macula_quic, Function, _}, _Kinds) when Function =:= send; Function =:= open_stream ->
    true;
may_wait({_Module, _Function, Arguments}, Kinds) ->
    lists:any(fun is_unbounded/1, lists:zip(Kinds, Arguments)).

is_unbounded({timeout, Ms}) -> Ms =:= infinity orelse is_integer(Ms) andalso Ms >= ?LONG_MS;
is_unbounded({server, Pid}) -> is_pid(Pid) andalso Pid =/= whereis(?POOL);
is_unbounded({nobody, _}) -> true;
is_unbounded(_Other) -> false.

made({Module, Function, Arguments}) ->
    try
        {returned, apply(Module, Function, Arguments)}
    catch
        Class:Reason:Stack ->
            {AtModule, AtFunction, Arity, _} = hd(Stack),
            {Class, Reason, {AtModule, AtFunction, arity(Arity)}}
    end.

arity(Arguments) when is_list(Arguments) -> length(Arguments);
arity(Arity) -> Arity.

%% What was wrong with it, or that it has none yet.
outcome({Pid, Monitor, {Number, {Module, Function, Arguments} = Call, _}}, Deadline) ->
    Left = max(0, Deadline - erlang:monotonic_time(millisecond)),
    receive
        {'DOWN', Monitor, process, Pid, {outcome, Outcome}} ->
            case is_right({Module, Function, length(Arguments)}, Outcome) of
                true -> [];
                false -> [{Number, shown(Call), shown(Outcome)}]
            end;
        {'DOWN', Monitor, process, Pid, Reason} ->
            [{Number, shown(Call), {died, shown(Reason)}}]
    after Left ->
        waits
    end.

shown(Term) -> lists:sublist(lists:flatten(io_lib:format("~0P", [Term, 60])), ?SHOWN).

is_right({Module, Function, _}, {returned, {error, Reason}}) ->
    fits(Reason, reasons(Module, Function));
is_right(_Function, {returned, _}) -> true;
is_right(_Function, {error, badarg, _At}) -> true;
is_right(Function, {error, function_clause, At}) -> At =:= Function orelse is_otp(At);
%% A server that is none, has gone, or is elsewhere.
is_right(_Function, {exit, _Reason, At}) -> is_otp(At);
is_right(_Function, _Outcome) -> false.

%% What the functions' types say, or docs/migration.md: of a place.
%% Of the native module, which is nobody's to call, any of that.
reasons(?POOL, get_or_create_connection) -> type(error_reason);
reasons(?POOL, send) -> type(delivery_error);
reasons(?POOL, set_max_connections) -> [{bad_option, max_mesh_connections, 'Term'}];
reasons(?POOL, start_link) -> [{already_started, 'Pid'} | type(start_error)];
reasons(macula_quic, listen) -> [{bad_address, 'Term'} | type(listen_error)];
reasons(macula_quic, reload_certificates) -> type(reload_error);
reasons(macula_quic, accept) -> [timeout, cancelled | type(accept_error)];
reasons(macula_quic, async_accept) -> type(accept_error);
reasons(macula_quic, accept_stream) -> [timeout, cancelled, not_accepting | type(accept_error)];
reasons(macula_quic, async_accept_stream) -> [not_accepting | type(accept_error)];
reasons(macula_quic, connect) -> type(connect_error);
reasons(macula_quic, open_stream) -> type(send_error);
reasons(macula_quic, send) -> type(send_error);
reasons(macula_quic, async_send) -> type(send_error);
reasons(macula_quic, recv) -> type(recv_error);
reasons(macula_quic, getstat) -> [closed, {unknown_key, 'Term'}];
reasons(macula_quic, setopt) -> [closed];
reasons(macula_quic, sockname) -> [closed];
reasons(macula_quic, controlling_process) -> [not_owner, noproc, closed];
reasons(?TLS, pool) -> [{bad_option, 'Atom', 'Term'}];
reasons(gen_server, call) -> [unknown_request, {bad_option, 'Atom', 'Term'} | type(delivery_error)];
reasons(?NIF, _Function) -> lists:append([type(Type) || Type <- types()]);
reasons(_Module, _Function) -> [].

types() ->
    [error_reason, delivery_error, start_error, listen_error, reload_error, accept_error] ++
        [connect_error, recv_error, owner_error].

%% Types of macula_gateway_mesh and macula_quic; what begins with a capital letter stands for any
%% term of that kind.
type(error_reason) ->
    [{connect_failed, {one_of, connect_reason}}, {stream_failed, 'Term'}];
type(connect_reason) ->
    [
        timeout, {bad_address, 'Term'}, bad_node_id, nxdomain, invalid_server_name, refused,
        {tls_alert, 'Number'}, version_mismatch, {transport_error, 'Number'},
        {closed_by_peer, 'Number'}, reset, idle_timeout, {dead, ack_timeout}, {unverified, 'Atom'},
        {socket_error, 'Atom'}, too_many_dials, removed, pool_closed, cancelled
    ];
type(delivery_error) ->
    [
        {connect_failed, {one_of, connect_reason}}, timeout, {unconfirmed, timeout},
        {unconfirmed, {one_of, send_error}}
    ] ++ type(send_error);
type(start_error) ->
    [
        {bad_option, 'Atom', 'Term'}, {bad_certificate, 'Path', 'Atom'}, {unverified, 'Atom'},
        runtime_failed
    ];
type(send_error) ->
    [
        closed, removed, evicted, pool_closed, idle_timeout, reset, {dead, ack_timeout},
        no_stream_credit, message_too_large, send_queue_full, cancelled, {closed_by_peer, 'Number'},
        {transport_error, 'Number'}, {tls_alert, 'Number'}, {stopped, 'Number'},
        {socket_error, 'Atom'}
    ];
type(connect_error) ->
    [
        timeout, idle_timeout, nxdomain, invalid_server_name, refused, version_mismatch, reset,
        cancelled, {bad_address, 'Term'}, {unverified, 'Atom'}, {tls_alert, 'Number'},
        {transport_error, 'Number'}, {closed_by_peer, 'Number'}, {socket_error, 'Atom'},
        runtime_failed
    ] ++ type(option_error);
type(listen_error) ->
    [no_certificate, {unverified, 'Atom'}, {socket_error, 'Atom'}, runtime_failed] ++
        type(option_error);
type(reload_error) ->
    [closed, no_certificate, {bad_certificate, 'Path', 'Atom'}];
type(option_error) ->
    [{unknown_option, 'Term'}, {bad_options, 'Term'} | type(start_error)];
type(accept_error) ->
    [closed, too_many_waiters];
type(recv_error) ->
    [timeout, {peer_send_aborted, 'Number'}, {frame_too_large, 'Number'} | type(send_error)];
type(owner_error) ->
    [not_owner, noproc, not_accepting].

fits(Reason, Allowed) -> lists:any(fun(Each) -> is_such(Reason, Each) end, Allowed).

is_such(_Term, 'Term') -> true;
is_such(Term, 'Atom') -> is_atom(Term);
is_such(Term, 'Number') -> is_integer(Term) andalso Term >= 0;
is_such(Term, 'Path') -> is_binary(Term);
is_such(Term, 'Pid') -> is_pid(Term);
is_such(Term, {one_of, Type}) -> fits(Term, type(Type));
is_such(Term, Tuple) when is_tuple(Tuple), tuple_size(Term) =:= tuple_size(Tuple) ->
    Pairs = lists:zip(tuple_to_list(Term), tuple_to_list(Tuple)),
    lists:all(fun({Part, Such}) -> is_such(Part, Such) end, Pairs);
is_such(Term, Other) -> Term =:= Other.

is_otp({Module, _, _}) -> lists:member(Module, [gen, gen_server, proc_lib, sys]).

%%% The arguments

%% As it should be or nearly so, or anything at all.
argument({exactly, Value}, _Things) ->
    Value;
argument(the_server, _Things) ->
    ?POOL;
argument(Kind, Things) ->
    case rand:uniform(3) of
        1 when Kind =/= request -> mesh_terms:term(maps:get(any, Things));
        _ -> fitting(Kind, Things)
    end.

fitting(any, #{any := Any}) ->
    mesh_terms:term(Any);
fitting(Kind, Things) when is_map_key(Kind, Things) ->
    mesh_terms:pick(maps:get(Kind, Things));
fitting(handle, #{stream := Streams, connection := Connections, listener := Listeners}) ->
    mesh_terms:pick(Streams ++ Connections ++ Listeners);
fitting(server, #{process := Processes}) ->
    Names = [?POOL, {?POOL, node()}, {?POOL, elsewhere@nowhere}],
    mesh_terms:pick([whereis(?POOL) | Names ++ Processes]);
fitting(nobody, #{process := Processes}) ->
    mesh_terms:pick([a_name_that_nobody_has, {?POOL, elsewhere@nowhere} | Processes]);
fitting(node_id, _Things) ->
    mesh_terms:pick([<<1:256>>, <<2:256>>, <<>>, binary:copy(<<7>>, 70_000)]);
fitting(address, #{port := [Port]}) ->
    mesh_terms:address(Port);
fitting(host, #{port := [Port]}) ->
    mesh_terms:pick([{127, 0, 0, 1}, "127.0.0.1", <<"localhost">>, mesh_terms:address(Port)]);
fitting(place, _Things) ->
    mesh_terms:pick([0, {{127, 0, 0, 1}, 0}, [{{127, 0, 0, 1}, 0}, {{0, 0, 0, 0, 0, 0, 0, 1}, 0}]]);
fitting(data, Things) ->
    mesh_terms:pick([<<>>, <<1, 2, 0, 0, 3:32, "abc">>, [<<"a">>, [$b | <<"c">>]], large(Things)]);
fitting(timeout, _Things) ->
    mesh_terms:pick([0, 1, 10, infinity, -1, 1 bsl 32 - 1, 1 bsl 32, 1.0]);
fitting(number, _Things) ->
    mesh_terms:pick([0, 1, 2, 4, 8, 15, 1_000, 1 bsl 32, 1 bsl 62 - 1, 1 bsl 62, -1]);
fitting(option, _Things) ->
    mesh_terms:pick([active, packet]);
fitting(mode, _Things) ->
    mesh_terms:pick([true, false, once, 1, 3, 0, 65_535, 65_536, macula, raw]);
fitting(keys, _Things) ->
    mesh_terms:pick([[send_cnt, recv_cnt], [], [send_pend, nothing], [send_oct | recv_oct]]);
fitting(options, Things) ->
    Files = persistent_term:get(?MODULE),
    mesh_terms:pick([Files, Files ++ pairs(option_keys(), Things), pairs(option_keys(), Things)]);
fitting(configuration, Things) ->
    Pairs = pairs(configuration_keys(), Things),
    [{certfile, CertFile}, {keyfile, KeyFile}] = persistent_term:get(?MODULE),
    Identity = #{cert_file => CertFile, key_file => KeyFile},
    Map = maps:from_list(Pairs),
    mesh_terms:pick([Map, maps:merge(Identity, Map), Pairs]);
fitting(request, #{any := Any, port := [Port]}) ->
    Term = fun() -> mesh_terms:term(Any) end,
    mesh_terms:pick([
        Term(),
        {get_or_create_connection, Term(), Term()},
        {get_or_create_connection, <<1:256>>, mesh_terms:address(Port)},
        {send_async, Term(), Term(), Term()},
        {send_async, <<1:256>>, mesh_terms:address(Port), <<"text">>},
        {send, Term(), Term(), Term(), Term()},
        {send, <<1:256>>, mesh_terms:address(Port), <<"text">>, 10},
        {remove_connection, Term()},
        {get_connection_info, Term()},
        {set_max_connections, Term()},
        {mesh_connected, {make_ref(), Term()}, Term()},
        {mesh_connected, Term(), Term()},
        {mesh_delivered, {make_ref(), Term()}, Term()},
        {mesh_event, Term()},
        {mesh_closed, Term(), Term()},
        {'EXIT', self(), Term()}
    ]).

large(_Things) -> binary:copy(<<"large">>, 60_000).

%% Right and wrong values of these keys, and one key of any kind.
pairs(Keys, #{any := Any}) ->
    Value = fun() ->
        mesh_terms:pick([
            mesh_terms:term(Any),
            mesh_terms:path(),
            mesh_terms:pick([0, 1, 2, 1_000, 65_536]),
            mesh_terms:pick([none, peer, false, at_least_once]),
            mesh_terms:pick(["macula", [<<"macula">>]])
        ])
    end,
    [{mesh_terms:pick(Keys), Value()} || _ <- lists:seq(1, rand:uniform(4) - 1)] ++
        [{mesh_terms:term(Any), Value()} || rand:uniform(4) =:= 1].

option_keys() ->
    [
        cert, key, certfile, keyfile, cacertfile, alpn, verify, depth, server_name_indication,
        idle_timeout_ms, keep_alive_interval_ms, handshake_idle_timeout_ms, peer_bidi_stream_count,
        peer_unidi_stream_count, max_frame_bytes, max_unfinished_bytes, receive_window_bytes,
        udp_buffer_bytes, backlog, max_connections, max_connections_per_address, max_handshakes,
        max_handshakes_per_address, retry_above_handshakes, verify_fun
    ].

configuration_keys() ->
    [
        cert_file, key_file, verify, cacertfile, verify_hostname, certificate, runtime_workers,
        max_mesh_connections, connect_timeout_ms, idle_timeout_ms, keep_alive_interval_ms,
        linger_ms, queue_max_messages, queue_max_bytes, pool_queue_max_messages,
        pool_queue_max_bytes, send_watermark_bytes, pool_send_watermark_bytes, max_concurrent_dials,
        max_pending_dials, stream_credit_timeout_ms, udp_buffer_bytes, redelivery, ack_timeout_ms,
        probe_after_ms, dial_backoff_min_ms, dial_backoff_max_ms, endpoints
    ].

%%% What there is to call them with

%% Handles of each kind, open and closed, and processes. All belong to the calling process.
things() ->
    Options = persistent_term:get(?MODULE),
    {ok, Listener} = macula_quic:listen({{127, 0, 0, 1}, 0}, Options),
    {ok, Closed} = macula_quic:listen({{127, 0, 0, 1}, 0}, Options),
    ok = macula_quic:close(Closed),
    {ok, {_, Port}} = macula_quic:sockname(Listener),
    {Clients, Servers} = lists:unzip([pair(Listener, Port) || _ <- lists:seq(1, 3)]),
    [Dead, Client | _] = Clients,
    ok = macula_quic:close(Dead),
    [_, Server | _] = Servers,
    Streams = [stream(Client, Server) || _ <- lists:seq(1, 4)],
    ok = macula_quic:setopt(hd(Streams), active, true),
    ok = macula_quic:close(lists:last(Streams)),
    {Pool, Pooled, Connection} = pool(Port),
    {OldPool, _, _} = pool(Port),
    ok = ?NIF:pool_close(OldPool, done),
    Processes = [spawn(fun idle/0), self_owned(), gone()],
    Handles = #{
        listener => [Listener, Closed],
        connection => [Connection | Clients ++ Servers],
        stream => [Pooled | Streams],
        pool => [Pool, OldPool],
        process => Processes
    },
    Handles#{port => [Port], any => lists:append(maps:values(Handles))}.

pair(Listener, Port) ->
    {ok, Client} = macula_quic:connect({127, 0, 0, 1}, Port, [{verify, none}], ?SET_UP_MS),
    {ok, Server} = macula_quic:accept(Listener, ?SET_UP_MS),
    {Client, Server}.

stream(Client, Server) ->
    {ok, Near} = macula_quic:open_stream(Client),
    ok = macula_quic:send(Near, <<1, 1, 0, 0, 1:32, 0>>),
    {ok, Far} = macula_quic:accept_stream(Server, ?SET_UP_MS),
    mesh_terms:pick([Near, Far]).

%% A pool of the library's own, beneath any server, with one connection.
pool(Port) ->
    {ok, Pool, _LingerMs} = ?NIF:pool_open(#{linger_ms => 20, connect_timeout_ms => 300}),
    ok = ?NIF:pool_connect(Pool, <<1:256>>, {{127, 0, 0, 1}, Port}, token),
    receive
        {mesh_connected, token, {ok, Stream}} ->
            {ok, #{connection := Connection}} = ?NIF:pool_info(Pool, <<1:256>>, 0),
            {Pool, Stream, Connection}
    after ?SET_UP_MS -> error(pool_did_not_connect)
    end.

%% The round itself owns the handles; it must survive its own calls.
self_owned() -> spawn(fun idle/0).

gone() ->
    {Pid, Monitor} = spawn_monitor(fun() -> ok end),
    receive
        {'DOWN', Monitor, process, Pid, _} -> Pid
    end.

idle() ->
    receive
        {never, _} -> ok
    end.
